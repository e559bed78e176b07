import jax
import pytest

from icl_jax.measures import map_snapshots


@pytest.fixture(scope="session", autouse=True)
def _two_devices():
    """A snapshot on each of two devices: what eight add here is time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_snapshots, "local_devices", lambda: jax.local_devices()[:2])
        yield
