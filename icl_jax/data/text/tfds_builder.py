"""Finding the builder of a TensorFlow Datasets set."""

import contextlib
import difflib
import importlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from icl_jax.config import UserError


@contextlib.contextmanager
def quiet_absl() -> Iterator[None]:
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
        where = f"prepared in data.tfds.data_dir = {data_dir!r}" if data_dir else "prepared in TFDS's own folder"
        allowed = f"must be a set of TensorFlow Datasets or one {where}"
        raise UserError(f"data.source = {'tfds:' + name!r}: {allowed}{hint}") from None
    except Exception as error:  # bad names, configs and versions raise ValueError, AssertionError and others
        reason = re.sub(r"^Failed to construct dataset .*\}\": ", "", " ".join(str(error).split()))
        raise UserError(f"data.source = {'tfds:' + name!r}: {reason[:200]}") from None
