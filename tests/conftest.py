"""Eight CPU devices, no silent promotion, and nothing of the user's: no cache, no tracker, no accelerator."""

import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before NumPy is imported, at the latest by workers, which inherit it: as the program has it, `one_blas_thread`.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import jax
import jaxtyping
import pytest
from _pytest.terminal import TerminalReporter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.compiling import QUICK, share_contexts
from tests.typechecking import checked

# Before jax is used first. JAX_PLATFORMS in the environment takes the tests to another platform.
if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
    # Most programs run once: what makes them faster costs more time than it saves. A level that is asked for stays.
    if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"
share_contexts()
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Before these are imported: types, shapes and dtypes in their signatures are checked at each call, at trace time under
# jit.
jaxtyping.install_import_hook(
    ["icl_jax.analysis", "icl_jax.maths", "icl_jax.measures", "icl_jax.model", "icl_jax.train.step"],
    f"{checked.__module__}.{checked.__name__}",
)

# A deadline measures the other worker too.
hypothesis.settings.register_profile("icl_jax", deadline=None, print_blob=True)
hypothesis.settings.load_profile("icl_jax")


# What takes a minute and more comes first, so that at the end there is something to do for every worker.
_FIRST = (
    "test_docs.py", "test_trained_run.py", "test_readme.py", "test_reproduce.py", "test_parallel.py", "test_kills.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _FIRST.index(item.path.name) if item.path.name in _FIRST else len(_FIRST))


def pytest_collection_finish() -> None:
    """Garbage is looked for in what tests make, and less often: of all that is imported none is."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 10)


@pytest.fixture(scope="session", autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches of this session's own, for tests and for the programs that they start; a test may override any of it."""
    # Compiled programs are used again by later tests, by the other workers' and by the commands that tests start.
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    jax.config.update("jax_compilation_cache_dir", str(cache / "icl_jax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("WANDB_SILENT", "true")
        yield


@pytest.fixture(scope="session", autouse=True)
def _two_devices() -> Iterator[None]:
    """Analysis has a snapshot on each of two devices: what eight add is time."""
    from icl_jax.measures import map_snapshots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_snapshots, "local_devices", lambda: jax.local_devices()[:2])
        yield


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    if runs := sys.modules.get("tests.train.runs"):
        runs.end_children()


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="module")
def long_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run that lasts some seconds, in a folder of the module's own."""
    from tests.train.runs import LONG

    path = tmp_path_factory.mktemp("config") / "long.toml"
    path.write_text(LONG)
    return path


@pytest.fixture
def wandb_of_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A W&B that finds neither the user's account nor her settings, and no process left over from another test."""
    import wandb

    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_BASE_URL", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    wandb.teardown()


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Where faults were among the tests, a table: what each said, what it cost, and what it changed."""
    table = Table("fault", "what is said", "lost", "bits that differ", title="Faults")
    n_survived = n_failed = 0
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if outcome != "passed" and re.search("tests/faults/|::test_one_process_lost_", report.nodeid):
                n_failed += 1
                table.add_row(escape(report.nodeid.rpartition("::")[2]), "", "", "NOT SURVIVED")
            elif outcome == "passed" and report.when == "call":
                for _, row in (found for found in report.user_properties if found[0] == "fault"):
                    n_survived += 1
                    table.add_row(*map(escape, row))
    if n_survived + n_failed == 0:
        return
    terminalreporter.write_line("")
    Console(width=160).print(table)
    terminalreporter.write_line(f"{n_survived + n_failed} faults tried, {n_survived} survived")


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    """A byte-level BPE of 262 tokens, BOS <|bos|>."""
    from icl_jax.data.corpora.manual import ManualDocuments
    from icl_jax.data.text.tokenizing import train_bpe

    documents = ManualDocuments()
    documents._texts, documents.n_bytes = documents._texts[:3], 1
    return str(train_bpe(documents, 1, 262).to_str())
