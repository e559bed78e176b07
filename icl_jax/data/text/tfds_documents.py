"""Documents out of TensorFlow Datasets sets, read without TensorFlow."""

import contextlib
import difflib
import hashlib
import importlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from icl_jax.config import DataConfig, UserError
from icl_jax.data.text.tfds_prepare import prepare
from icl_jax.data.text.tfrecord import read_records

_EXAMPLES_PER_READ = 256


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """TFDS warns, by absl, about every set that is not prepared yet."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _import_tfds() -> Any:
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise UserError(f"data.source = 'tfds:...': cannot import tensorflow_datasets: {error}") from None


def _builder_of_class(name: str, kwargs: dict[str, Any]) -> Any:
    """A builder from ``package.module.ClassName[/CONFIG][:VERSION]``."""
    path, _, version = name.partition(":")
    path, _, config = path.partition("/")
    module_name, _, class_name = path.rpartition(".")
    try:
        builder_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"data.source = {'tfds:' + name!r}: cannot import {path}: {error}") from None
    return builder_class(
        **kwargs, **({"config": config} if config else {}), **({"version": version} if version else {})
    )


def find_builder(name: str, data_dir: str) -> Any:
    """The TFDS builder of ``NAME[/CONFIG][:VERSION]``, writing ArrayRecord files where it is not prepared yet.

    NAME is a set of TensorFlow Datasets, one whose class was imported, one that lies prepared in ``data_dir`` or the
    import path of a builder class, ``package.module.ClassName``. Raises UserError if there is none.
    """
    tfds = _import_tfds()
    kwargs: dict[str, Any] = {"data_dir": str(Path(data_dir).expanduser())} if data_dir else {}
    is_class = "." in name.partition(":")[0].partition("/")[0]
    not_found = tfds.core.registered.DatasetNotFoundError

    def build(**more: Any) -> Any:
        if is_class:
            return _builder_of_class(name, kwargs | more)
        # Without try_gcs=False TFDS may look the set up in its bucket, which waits for a network that is not there.
        return tfds.builder(name, try_gcs=False, **kwargs, **more)

    try:
        try:
            builder = build()
        except not_found:
            # Older sets register only when their subpackage is imported.
            importlib.import_module("tensorflow_datasets.text")
            builder = build()
        # Without TensorFlow, sets can be written as ArrayRecord files, not in TFDS's own default format.
        return builder if builder.is_prepared() else build(file_format="array_record")
    except UserError:
        raise
    except not_found as error:
        known = re.findall(r"^\t- (\w+)$", str(error), re.MULTILINE)
        close = difflib.get_close_matches(re.split("[/:]", name)[0], known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        where = f"prepared in data.data_dir = {data_dir!r}" if data_dir else "prepared in TFDS's own folder"
        allowed = f"must be a set of TensorFlow Datasets or one {where}"
        raise UserError(f"data.source = {'tfds:' + name!r}: {allowed}{hint}") from None
    except Exception as error:  # bad names, configs and versions raise ValueError, AssertionError and others
        reason = re.sub(r"^Failed to construct dataset .*\}\": ", "", " ".join(str(error).split()))
        raise UserError(f"data.source = {'tfds:' + name!r}: {reason[:200]}") from None


def text_fields(features: Any) -> list[str]:
    """Names of the features that are a single string."""
    if not hasattr(features, "items"):
        return []
    is_string = {
        name: getattr(f, "np_dtype", None) is not None and f.np_dtype in (object, str) for name, f in features.items()
    }
    return sorted(name for name, feature in features.items() if is_string[name] and feature.shape == ())


class TfdsDocuments:
    """One document per example: the text ``field`` of the examples of a prepared set's split, in the set's order.

    Blank texts are left out. Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self, builder: Any, name: str, split: str, field: str) -> None:
        self._builder = builder
        self._split = split
        self._field = field
        source = f"data.source = {'tfds:' + name!r}"
        try:
            self._shards = builder.info.splits[split].file_instructions
        except (ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"data.split = {split!r}: {reason} ({source})") from None
        try:
            stats = [Path(shard.filename).stat() for shard in self._shards]
        except OSError as error:
            raise UserError(f"{error.filename}: cannot read a shard of {source}: {error.strerror}") from None
        self._stats = [
            (s.filename, s.skip, s.take, st.st_size, st.st_mtime_ns) for s, st in zip(self._shards, stats, strict=True)
        ]
        self.n_bytes = sum(stat.st_size for stat in stats)
        self._is_tfrecord = builder.info.file_format.value == "tfrecord"

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the split's files, their sizes and times of change, and the field."""
        listing = json.dumps(["tfds", self._field, self._split, self._stats])
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()

    def _examples(self) -> Iterator[dict[str, Any]]:
        if self._is_tfrecord:
            # as_data_source wants random access, which this format does not offer.
            for shard in self._shards:
                for record in read_records(Path(shard.filename), shard.skip, shard.take):
                    yield self._builder.info.features.deserialize_example_np(record)
            return
        source = self._builder.as_data_source(split=self._split)
        for start in range(0, len(source), _EXAMPLES_PER_READ):
            yield from source.__getitems__(list(range(start, min(start + _EXAMPLES_PER_READ, len(source)))))

    def __iter__(self) -> Iterator[str]:
        """The documents."""
        for example in self._examples():
            value = example[self._field]
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            if text.strip():
                yield text


def tfds_documents(data: DataConfig) -> TfdsDocuments:
    """The documents of a ``tfds:`` source, prepared first where they are not.

    Raises UserError for a set, split or field that does not exist or a set that cannot be prepared here.
    """
    name = data.source.partition(":")[2]
    with _quiet_absl():
        builder = find_builder(name, data.data_dir)
        fields = text_fields(builder.info.features)
        if data.field not in fields:
            allowed = f"must be a text feature of {data.source!r}: {', '.join(map(repr, fields)) or 'it has none'}"
            raise UserError(f"data.field = {data.field!r}: {allowed}")
        if not builder.is_prepared():
            prepare(builder, name, data.data_dir)
            builder = find_builder(name, data.data_dir)
        return TfdsDocuments(builder, name, data.split, data.field)
