"""One checkpoint: what its config.json says, and its tensors."""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icl_jax.config import UserError
from icl_jax.config.what_it_is import check_readable
from icl_jax.importing.formats.pytorch_file import load_pytorch
from icl_jax.importing.formats.tensor import Tensors
from icl_jax.rundir.files import reason

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
_WEIGHTS_NAME = re.compile(r"(?!training_args|optimizer|scheduler|rng_state).*\.(safetensors|bin|pth|pt|gguf)")
_NUMBERED = re.compile(r"(?:checkpoints/)?[^/]*[-_](\d+)\.(?:pth|pt)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GGUF, _PTH = ".gguf", (".pth", ".pt")
WEIGHTS = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
)  # fmt: skip
"""Where `transformers` puts weights, the first that is there."""


@dataclass(frozen=True)
class Checkpoint:
    """A model in files."""

    path: Path
    """The folder, or the one file that holds all."""
    config: dict[str, Any]
    """config.json, or what stands for it."""
    tensors: Tensors
    hashes: dict[str, Future[str]]
    """Of each file that was read, by its name, taken beside: see `files`."""
    tokenizer_json: str | None = field(default=None, repr=False)
    """In the format of the `tokenizers` library, where the file itself holds one (GGUF)."""

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file that was read, by its name. Raises UserError for one that is not what its hash says."""
        return {name: found.result() for name, found in self.hashes.items()}

    @property
    def n_bytes(self) -> int:
        """Of the files."""
        folder = self.path if self.path.is_dir() else self.path.parent
        return sum((folder / name).stat().st_size for name in self.hashes if (folder / name).is_file())


def is_checkpoint(path: Path) -> bool:
    """Whether this holds one model: a folder with a config.json and weights, or one file of a known kind."""
    if path.is_file():
        return path.suffix == _GGUF or (path.suffix in _PTH and _config_beside(path) is not None)
    return (path / "config.json").is_file() or len(list(path.glob(f"*{_GGUF}"))) == 1


def open_checkpoint(path: Path) -> Checkpoint:
    """Read all but the tensors' numbers, and begin to take the SHA-256 of the files: `Checkpoint.files` has it.

    Raises UserError, naming the file, where one is missing, damaged, or of no known kind.
    """
    with _hashing() as take:
        return _open(path, take)


@contextlib.contextmanager
def _hashing() -> Iterator[Callable[..., Future[str]]]:
    """A thread that takes hashes. What they say of a damaged file comes before whatever else goes wrong with it."""
    beside = ThreadPoolExecutor(1, thread_name_prefix="icl_jax-hashes")
    taken: list[Future[str]] = []

    def take(fn: Callable[[Path], str], path: Path) -> Future[str]:
        taken.append(beside.submit(fn, path))
        return taken[-1]

    try:
        yield take
    except UserError:
        for found in taken:
            found.result()
        raise
    finally:
        beside.shutdown(wait=False)


def _open(path: Path, take: Callable[..., Future[str]]) -> Checkpoint:
    if path.is_dir() and not (path / "config.json").is_file() and is_checkpoint(path):
        (path,) = path.glob(f"*{_GGUF}")
    if path.suffix == _GGUF:
        from icl_jax.importing.formats.gguf_file import load_gguf  # its library is an extra

        hashes = {path.name: take(file_sha256, path)}
        config, tensors, tokenizer_json = load_gguf(path)
        return Checkpoint(path, config, tensors, hashes, tokenizer_json)
    if path.suffix in _PTH and (beside := _config_beside(path)) is not None:
        read = {path.name: take(file_sha256, path), "config.json": take(content_sha256, beside / "config.json")}
        return Checkpoint(path, load_config_json(beside), load_pytorch(path), read)
    config = load_config_json(path)
    files = _weight_files(path)
    hashes = {name: take(file_sha256, path / name) for name in ["config.json", *files]}
    tensors = {}
    for name in files:
        found = _loader(path / name)(path / name)
        if twice := tensors.keys() & found.keys():
            raise UserError(f"{path / name}: {min(twice)} is in another of its files too")
        tensors |= found
    return Checkpoint(path, config, tensors, hashes)


def load_config_json(path: Path) -> dict[str, Any]:
    """config.json of a folder. Raises UserError if it is missing or not a JSON object."""
    file = path / "config.json"
    check_readable(file, f"{file}: cannot be read")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}; a checkpoint needs it") from None
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {reason(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: must be a JSON object")
    return found


def numbered_pth(folder: Path) -> dict[str, Path]:
    """The .pth files of one model at several steps, as TransformerLens keeps them, by the step in their names."""
    names = [str(path.relative_to(folder)) for part in ("*", "checkpoints/*") for path in sorted(folder.glob(part))]
    return {step: folder / name for step, name in numbered_files(names).items()}


def numbered_files(names: Iterable[str]) -> dict[str, str]:
    """The same of the names of files."""
    found = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    return {f"step{int(match[1])}": match[0] for match in found} if len(found) > 1 else {}


def _config_beside(path: Path) -> Path | None:
    """The folder of the config.json that a file of weights goes with: its own, or the one above."""
    return next((folder for folder in path.parents[:2] if (folder / "config.json").is_file()), None)


def _weight_files(path: Path) -> list[str]:
    """Names of the files of one folder that hold its weights. Raises UserError for a shard that is missing."""
    name = next((name for name in WEIGHTS if (path / name).is_file()), None)
    if name is None:
        alone = [p.name for p in path.iterdir() if p.suffix in _PTH]
        if len(alone) == 1:
            return alone
        shards = sorted(p.name for p in path.iterdir() if _SHARD.fullmatch(p.name))
        if not shards:
            raise UserError(f"{path}: has no weights: must hold one of {', '.join(WEIGHTS)}")
        match = _SHARD.fullmatch(shards[0])
        assert match is not None
        stem, _, n, suffix = match.groups()
        files = [f"{stem}-{i:05}-of-{n}{suffix}" for i in range(1, int(n) + 1)]
    elif name.endswith(".index.json"):
        try:
            files = sorted(set(json.loads((path / name).read_text(encoding="utf-8"))["weight_map"].values()))
            is_plain = all(Path(file).name == file for file in files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            is_plain = False
        if not is_plain:
            raise UserError(f"{path / name}: damaged: must name the file of each tensor (weight_map)")
    else:
        files = [name]
    missing = [file for file in files if not (path / file).is_file()]
    if missing:
        raise UserError(f"{path / missing[0]}: missing: {len(missing)} of the {len(files)} files of its weights")
    return files


def _loader(path: Path) -> Callable[[Path], Tensors]:
    if path.suffix == ".safetensors":
        from icl_jax.importing.formats.safetensors_file import load_safetensors

        return load_safetensors
    return load_pytorch


def file_sha256(path: Path) -> str:
    """SHA-256 of a file. Raises UserError where it is not what the hub's own files beside it say that it is."""
    found = content_sha256(path)
    promised = _promised_sha256(path)
    if promised is not None and promised != found:
        raise UserError(f"{path}: damaged: its SHA-256 is {found[:12]}, the hub says {promised[:12]}")
    return found


def content_sha256(path: Path) -> str:
    """SHA-256 of a file, whatever it should be. Raises UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def is_weights(name: str) -> bool:
    """Whether a file holds weights, by its name; a trainer's own states do not count."""
    return bool(_WEIGHTS_NAME.fullmatch(name))


def _promised_sha256(path: Path) -> str | None:
    """What the hub said: large files of its cache are links to blobs named by it; a download into a folder notes it."""
    blob = path.resolve()
    if path.is_symlink() and blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    try:
        _commit, etag, *_ = note.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return etag if _SHA256.fullmatch(etag) else None
