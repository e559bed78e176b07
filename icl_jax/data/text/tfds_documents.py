"""Documents out of TensorFlow Datasets sets, read without TensorFlow."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from icl_jax.config import UserError
from icl_jax.data.text.reading import identity_of
from icl_jax.data.text.tfds_builder import find_builder, quiet_absl
from icl_jax.data.text.tfds_prepare import prepare
from icl_jax.data.text.tfrecord import read_records

_EXAMPLES_PER_READ = 256


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

    is_cut = False

    def __init__(self, builder: Any, name: str, split: str, field: str) -> None:
        self._builder = builder
        self._split = split
        self._field = field
        source = f"data.source = {'tfds:' + name!r}"
        try:
            self._shards = builder.info.splits[split].file_instructions
        except (ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"data.tfds.split = {split!r}: {reason} ({source})") from None
        files = [identity_of(Path(shard.filename), f" a shard of {source}") for shard in self._shards]
        self._files = [(shard.skip, shard.take, *file) for shard, file in zip(self._shards, files, strict=True)]
        self.n_bytes = sum(file.size for file in files)
        self._is_tfrecord = builder.info.file_format.value == "tfrecord"

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the split's files, their sizes, inodes and times of change, and the field."""
        listing = json.dumps(["tfds", self._field, self._split, self._files])
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


def tfds_documents(name: str, *, split: str, field: str, data_dir: str) -> TfdsDocuments:
    """The documents of ``tfds:NAME``, prepared first where they are not.

    Raises UserError for a set, split or field that does not exist or a set that cannot be prepared here.
    """
    with quiet_absl():
        builder = find_builder(name, data_dir)
        fields = text_fields(builder.info.features)
        if field not in fields:
            allowed = f"must be a text feature of {'tfds:' + name!r}: {', '.join(map(repr, fields)) or 'it has none'}"
            raise UserError(f"data.tfds.field = {field!r}: {allowed}")
        if not builder.is_prepared():
            prepare(builder, name, data_dir)
            builder = find_builder(name, data_dir)
        return TfdsDocuments(builder, name, split, field)
