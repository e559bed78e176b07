"""`hf:` against a hub on this machine: what is asked for, what is deleted, what its refusals read like."""

import http.server
import json
import threading
from collections.abc import Iterator
from hashlib import sha1, sha256
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from icl_jax.importing.sources import hub
from icl_jax.importing.sources.hub import HubSource
from icl_jax.importing.sources.revision import Revision
from icl_jax.rundir import RunDir
from tests.train.runs import command

REPO = "EleutherAI/pythia-tiny"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that a download takes."""

    folder: Path
    fetched: list[str]

    def log_message(self, *_: object) -> None: ...

    def _json(self, value: object, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/models").strip("/")
        if not path.startswith(REPO):
            code = "GatedRepo" if "gated" in path else "RepoNotFound"
            self._json({"error": code}, 403 if "gated" in path else 401, X_Error_Code=code)
            return
        rest = path.removeprefix(REPO).strip("/").split("/")
        if rest[0] == "refs":
            names = [path.name for path in sorted(self.folder.iterdir())]
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": _commit(n)} for n in ["main", *names]]
            self._json({"branches": branches, "converts": [], "tags": []})
            return
        revision = rest[1]
        known = {_commit(path.name): path.name for path in self.folder.iterdir()}
        folder = self.folder / known.get(revision, revision)
        if not folder.is_dir():
            self._json({"error": "no"}, 404, X_Error_Code="RevisionNotFound")
        elif rest[0] == "revision":
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            self._json({"id": REPO, "sha": _commit(folder.name), "siblings": files, "private": False, "tags": []})
        elif rest[0] == "tree":
            files = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                for path in sorted(folder.iterdir())
            ]
            self._json(files)
        else:
            self._file(folder / rest[2], folder.name)

    def _file(self, path: Path, revision: str) -> None:
        if not path.is_file():
            self._json({"error": "no"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=_commit(revision))
            return
        body = path.read_bytes()
        self.send_response(200)
        is_large = path.suffix == ".safetensors"
        etag = sha256(body).hexdigest() if is_large else sha1(body).hexdigest()
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", _commit(revision))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.fetched.append(f"{revision}/{path.name}")
            self.wfile.write(body)


def _commit(revision: str) -> str:
    return sha1(revision.encode()).hexdigest()


@pytest.fixture
def server(series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("Handler", (Hub,), {"folder": series, "fetched": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{httpd.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield handler
        httpd.shutdown()


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
    assert origin["snapshots"]["2"]["commit"] == _commit("step2")
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
        commit = _commit(f"step{step}")
        (repo / "refs" / f"step{step}").write_text(commit)
        (repo / "snapshots").mkdir(exist_ok=True)
        (repo / "snapshots" / commit).symlink_to(series / f"step{step}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    source = HubSource(f"hf:{REPO}", tmp_path / "downloads")
    revisions, _ = source.revisions()
    assert [revision.step for revision in revisions] == [0, 4]
    with source.fetch(Revision(name="step4", step=4)) as fetched:
        assert fetched.commit == _commit("step4")
        assert (fetched.path / "model.safetensors").exists()
    assert (repo / "snapshots" / _commit("step4") / "config.json").exists()
    assert not (tmp_path / "downloads").exists()
