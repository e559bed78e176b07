"""A hub on this machine: the part of its interface that listing and downloading take."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from hashlib import sha1, sha256
from pathlib import Path

import pytest
from huggingface_hub import constants

REPO = "EleutherAI/pythia-tiny"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that a download takes."""

    repo = REPO
    folder: Path
    """A folder for each revision."""
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
        if not path.startswith(self.repo):
            code = "GatedRepo" if "gated" in path else "RepoNotFound"
            self._json({"error": code}, 403 if "gated" in path else 401, X_Error_Code=code)
            return
        rest = path.removeprefix(self.repo).strip("/").split("/")
        if rest[0] == "refs":
            names = [path.name for path in sorted(self.folder.iterdir())]
            branches = [
                {"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit_of(n)}
                for n in {"main": 0} | dict.fromkeys(names)
            ]
            self._json({"branches": branches, "converts": [], "tags": []})
            return
        revision = rest[1]
        known = {commit_of(path.name): path.name for path in self.folder.iterdir()}
        folder = self.folder / known.get(revision, revision)
        if not folder.is_dir():
            self._json({"error": "no"}, 404, X_Error_Code="RevisionNotFound")
        elif rest[0] == "revision":
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            self._json(
                {"id": self.repo, "sha": commit_of(folder.name), "siblings": files, "private": False, "tags": []}
            )
        elif rest[0] == "tree":
            self._json([_entry(path, folder) for path in _files(folder)])
        else:
            self._file(folder.joinpath(*rest[2:]), folder.name)

    def _file(self, path: Path, revision: str) -> None:
        if not path.is_file():
            self._json({"error": "no"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit_of(revision))
            return
        body = path.read_bytes()
        self.send_response(200)
        is_large = path.suffix == ".safetensors"
        etag = sha256(body).hexdigest() if is_large else sha1(body).hexdigest()
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit_of(revision))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.fetched.append(f"{revision}/{path.name}")
            self.wfile.write(body)


def commit_of(revision: str) -> str:
    return sha1(revision.encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _entry(path: Path, folder: Path) -> dict[str, object]:
    body = path.read_bytes()
    entry = {"type": "file", "path": str(path.relative_to(folder)), "size": len(body), "oid": sha1(body).hexdigest()}
    large = {"oid": sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
    return entry | ({"lfs": large} if path.suffix == ".safetensors" else {})


@contextlib.contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, repo: str = REPO) -> Iterator[type[Hub]]:
    """The revisions of `folder` as the repository `repo` of the hub, with an empty cache."""
    handler = type("Handler", (Hub,), {"folder": folder, "fetched": [], "repo": repo})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{httpd.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "cache"))
        yield handler
        httpd.shutdown()
