"""Eight CPU devices, no silent promotion, and nothing of the user's: no cache, no tracker, no accelerator."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

# Before jax is used first. JAX_PLATFORMS in the environment takes the tests to another platform.
if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A deadline measures the other worker too.
hypothesis.settings.register_profile("icl_jax", deadline=None, print_blob=True)
hypothesis.settings.load_profile("icl_jax")


@pytest.fixture(scope="session", autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches of this worker's own, for tests and for the programs that they start; a test may override any of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("WANDB_SILENT", "true")
        yield


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[1]
