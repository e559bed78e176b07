"""Checkpoints of a repository on the Hugging Face hub: a branch or tag for each step."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import RepoFile, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from icl_jax.config import UserError
from icl_jax.importing.checkpoint import WEIGHTS, content_sha256, numbered_files
from icl_jax.importing.sources.revision import Revision, revision_of, series_of
from icl_jax.importing.sources.source import Fetched
from icl_jax.rundir.files import reason

_SMALL = ("config.json", "tokenizer.json", "vocab.json", "merges.txt")


class HubSource:
    """``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``.

    One revision at a time is downloaded, to a folder of `cache`, and deleted after use. With HF_HUB_OFFLINE=1 the
    user's own cache of the hub is read, and nothing is deleted.
    """

    def __init__(self, text: str, cache: Path, stage: str = "") -> None:
        self._stage = stage
        self._repo, _, self._revision = text.removeprefix("hf:").partition("@")
        self._cache = cache
        self._is_offline = constants.is_offline_mode()
        self._api = huggingface_hub.HfApi()
        self._files: dict[str, str] = {}
        """Of a repository whose one revision has a file for each step, as TransformerLens's have: by step."""

    @property
    def is_local(self) -> bool:
        return self._is_offline

    @property
    def name(self) -> str:
        return f"hf:{self._repo}"

    @property
    def title(self) -> str:
        return self._repo.rpartition("/")[2]

    def revisions(self) -> tuple[list[Revision], list[str]]:
        """See `Source`; a repository without steps gives its main branch."""
        if self._revision:
            return [revision_of(self._revision)], []
        with _explained(self._repo):
            names = self._cached_refs() if self._is_offline else self._listed_refs()
        series, words = series_of(names, self._stage)
        if series:
            return series, words
        if "main" in names and not self._is_offline:
            with _explained(self._repo):
                there = self._api.list_repo_files(self._repo, revision="main")
            self._files = numbered_files(there)
            if self._files:
                return series_of(list(self._files))
        if "main" not in names:
            raise UserError(f"hf:{self._repo}: has no revision; there are {', '.join(names[:5]) or 'none'}")
        return [Revision(name="main")], []

    def _listed_refs(self) -> list[str]:
        refs = self._api.list_repo_refs(self._repo)
        return [ref.name for ref in (*refs.branches, *refs.tags)]

    def _cached_refs(self) -> list[str]:
        folder = Path(constants.HF_HUB_CACHE) / f"models--{self._repo.replace('/', '--')}" / "refs"
        if not folder.is_dir():
            raise LocalEntryNotFoundError(f"{folder} is not there")
        return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]

    def config(self, revision: Revision) -> dict[str, Any] | None:
        """See `Source`."""
        with self._folder() as cache, _explained(self._repo, revision.name):
            path = huggingface_hub.hf_hub_download(
                self._repo,
                "config.json",
                revision=self._ref(revision),
                cache_dir=cache,
                local_files_only=self._is_offline,
            )
            try:
                found = json.loads(Path(path).read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{self.name}@{revision.name}: config.json: not JSON: {reason(error)}") from None
        return found if isinstance(found, dict) else {}

    def files(self, revision: Revision) -> dict[str, str]:
        """See `Source`: the hub's hashes of large files, no byte of which is downloaded."""
        with _explained(self._repo, revision.name):
            if not self._is_offline:
                tree = self._api.list_repo_tree(self._repo, revision=self._ref(revision), recursive=bool(self._files))
                files = [entry for entry in tree if isinstance(entry, RepoFile)]
                if name := self._files.get(revision.name):
                    (one,) = (entry for entry in files if entry.path == name)
                    return {"config.json": "", Path(name).suffix: one.lfs.sha256 if one.lfs else one.blob_id}
                return {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in files}
        with self.fetch(revision) as fetched:
            paths = sorted(path for path in fetched.path.iterdir() if path.is_file())
            # A blob of the cache is named by its hash.
            return {path.name: path.resolve().name if path.is_symlink() else content_sha256(path) for path in paths}

    @contextmanager
    def fetch(self, revision: Revision) -> Iterator[Fetched]:
        """See `Source`."""
        with self._folder() as cache:
            with _explained(self._repo, revision.name):
                patterns = None if self._is_offline else self._wanted(revision)
                path = huggingface_hub.snapshot_download(
                    self._repo, revision=self._ref(revision), cache_dir=cache, allow_patterns=patterns,
                    local_files_only=self._is_offline,
                )  # fmt: skip
            yield Fetched(path=Path(path) / self._files.get(revision.name, ""), commit=Path(path).name)

    def _ref(self, revision: Revision) -> str:
        return "main" if revision.name in self._files else revision.name

    def _wanted(self, revision: Revision) -> list[str]:
        """The small files, and one form of the weights where there are several."""
        if revision.name in self._files:
            return [*_SMALL, self._files[revision.name]]
        there = self._api.list_repo_files(self._repo, revision=revision.name)
        first = next((name for name in WEIGHTS if name in there), None)
        if first is None:
            return [*_SMALL, "model-*.safetensors", "pytorch_model-*.bin"]
        stem = first.removesuffix(".index.json")
        shards = [stem.replace(".", "-*.", 1)] if first != stem else []
        return [*_SMALL, first, *shards]

    @contextmanager
    def _folder(self) -> Iterator[str | None]:
        """Where downloads go; None: the user's own cache."""
        if self._is_offline:
            yield None
            return
        self._cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=self._cache)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _explained(repo: str, revision: str = "") -> Iterator[None]:
    """Raise UserError in one line for what the hub and the network say."""
    where = f"hf:{repo}{'@' if revision else ''}{revision}"
    try:
        yield
    except HFValidationError:
        raise UserError(f"{where}: must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION") from None
    except GatedRepoError:
        raise UserError(f"{where}: is gated: ask for access on its page, then `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{where}: no such repository, or a private one: `hf auth login` opens those") from None
    except RevisionNotFoundError:
        raise UserError(f"{where}: no such revision") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        what = "HF_HUB_OFFLINE is set, and it is not in the cache" if os.environ.get("HF_HUB_OFFLINE") else "no network"
        raise UserError(f"{where}: cannot be fetched: {what}") from None
    except EntryNotFoundError as error:
        raise UserError(f"{where}: a file is missing: {reason(error)}") from None
    except HfHubHTTPError as error:
        raise UserError(f"{where}: the hub refused: {reason(error)}") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be fetched: {reason(error)}") from None
    except Exception as error:
        # The HTTP client's own errors, of a library that need not be the one that is installed next year.
        if not type(error).__module__.startswith(("http", "requests", "urllib3")):
            raise
        raise UserError(f"{where}: no network: {reason(error)}") from None
