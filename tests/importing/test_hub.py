"""`hf:` against a hub on this machine: what is asked for, what is deleted, what its refusals read like."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from icl_jax.importing.sources import hub
from icl_jax.importing.sources.hub import HubSource
from icl_jax.importing.sources.revision import Revision
from icl_jax.rundir import RunDir
from tests.importing.hub import REPO, Hub, commit_of, serving
from tests.train.runs import command


@pytest.fixture
def server(series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    with serving(series, monkeypatch, tmp_path) as handler:
        yield handler


def test_a_repository_is_imported_a_revision_at_a_time(
    server: type[Hub], imported: Path, text: Path, tmp_path: Path
) -> None:
    args = ("import", f"hf:{REPO}", "--run", tmp_path / "run", "--text", text, "--n-ctx", "32")
    status, _, err = command(*args)
    assert status == 0, err
    manifests = [(run / "manifest.jsonl").read_text() for run in (tmp_path / "run", imported)]
    assert manifests[0] == manifests[1]
    origin = RunDir.open(str(tmp_path / "run")).imported
    assert origin is not None
    assert origin["source"] == f"hf:{REPO}"
    assert origin["tokens_per_step"] == 2**21
    assert origin["snapshots"]["2"]["commit"] == commit_of("step2")
    assert [name for name in server.fetched if name.endswith(".safetensors")] == [
        f"step{step}/model.safetensors" for step in (0, 2, 4)
    ]
    assert list((tmp_path / "cache" / "icl_jax" / "hub").iterdir()) == []
    server.fetched.clear()
    assert command(*args)[0] == 0
    assert server.fetched == []  # nothing is missing


def test_what_the_hub_refuses_is_one_line(server: type[Hub], tmp_path: Path) -> None:
    cases = {
        "hf:nobody/nothing": "hf:nobody/nothing: no such repository, or a private one",
        "hf:some/gated-model": "hf:some/gated-model: is gated: ask for access on its page",
        f"hf:{REPO}@step7": f"hf:{REPO}@step7: no such revision",
    }
    for source, said in cases.items():
        status, _, err = command("import", source, "--run", tmp_path / "run")
        assert (status, err.count("\n")) == (2, 1), err
        assert said in err
        assert not (tmp_path / "run").exists()


def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = HfApi(endpoint="http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(hub.huggingface_hub, "HfApi", lambda: api)
    status, _, err = command("import", f"hf:{REPO}", "--run", tmp_path / "run")
    assert (status, err.count("\n")) == (2, 1), err
    assert f"hf:{REPO}: no network" in err or f"hf:{REPO}: cannot be fetched" in err


def test_offline_the_users_own_cache_is_read_and_stays(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    repo = cache / f"models--{REPO.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    for step in (0, 4):
        commit = commit_of(f"step{step}")
        (repo / "refs" / f"step{step}").write_text(commit)
        (repo / "snapshots").mkdir(exist_ok=True)
        (repo / "snapshots" / commit).symlink_to(series / f"step{step}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    source = HubSource(f"hf:{REPO}", tmp_path / "downloads")
    revisions, _ = source.revisions()
    assert [revision.step for revision in revisions] == [0, 4]
    with source.fetch(Revision(name="step4", step=4)) as fetched:
        assert fetched.commit == commit_of("step4")
        assert (fetched.path / "model.safetensors").exists()
    assert (repo / "snapshots" / commit_of("step4") / "config.json").exists()
    assert not (tmp_path / "downloads").exists()
