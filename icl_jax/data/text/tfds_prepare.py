"""Preparing a TensorFlow Datasets set: download it and write it as ArrayRecord files.

Most sets of TensorFlow Datasets use TensorFlow while they are prepared (never while they are read). Those are
prepared by this module as a program, ``python -m icl_jax.data.text.tfds_prepare NAME DATA_DIR``, so that TensorFlow is
never loaded into a process that trains. Its last line on stdout says why it failed, if it did.
"""

import contextlib
import importlib
import importlib.util
import inspect
import io
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from icl_jax.config import UserError
from icl_jax.data.text.tfds_builder import find_builder

_NETWORK_TIMEOUT_S = 10.0
_NEEDS_TENSORFLOW = 'needs TensorFlow to prepare: pip install "icl-jax[tfds]"'


def uses_tensorflow(builder: Any) -> bool:
    """Whether the module of a builder's class imports TensorFlow."""
    module = sys.modules.get(type(builder).__module__)
    try:
        source = inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):
        return False
    return "import tensorflow as tf" in source


def check_network(builder: Any, source: str) -> None:
    """Raise UserError if the host of the set's files does not answer. TFDS itself would try for minutes per file."""
    downloads = Path(builder._data_dir_root) / "downloads"
    if not builder.url_infos or (downloads.is_dir() and any(path.is_file() for path in downloads.iterdir())):
        return
    url = next(iter(builder.url_infos))
    host = urllib.parse.urlsplit(url).netloc
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_NETWORK_TIMEOUT_S):
            pass
    except urllib.error.HTTPError:
        pass  # the host answered; that it dislikes HEAD is no matter
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{source}: no network: {host}: {reason}") from None


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def prepare_here(builder: Any) -> None:
    """Prepare in this process. Raises ImportError if the set needs a package that is not there."""
    tfds: Any = importlib.import_module("tensorflow_datasets")
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # TFDS prints what it is about to do; stdout belongs to the command line.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()


def prepare(builder: Any, name: str, data_dir: str) -> None:
    """Prepare the set ``name`` in ``data_dir``, with TensorFlow in a process of its own if the set needs it.

    Raises UserError if it needs TensorFlow and there is none, if there is no network or if preparing fails.
    """
    source = f"data.source = {'tfds:' + name!r}"
    needs_tensorflow = uses_tensorflow(builder)
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    if needs_tensorflow and not has_tensorflow:
        raise UserError(f"{source}: {_NEEDS_TENSORFLOW}")
    check_network(builder, source)
    if not needs_tensorflow:
        try:
            prepare_here(builder)
            return
        except ImportError as error:
            if (error.name or "").partition(".")[0] != "tensorflow":
                raise UserError(f"{source}: cannot be prepared: {_one_line(error)}") from None
            if not has_tensorflow:
                raise UserError(f"{source}: {_NEEDS_TENSORFLOW}") from None
        except Exception as error:  # a builder's code may raise anything
            raise UserError(f"{source}: cannot be prepared: {_one_line(error)}") from error
    command = [sys.executable, "-m", "icl_jax.data.text.tfds_prepare", name, data_dir]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"{source}: cannot be prepared: {lines[-1]}")


def main(name: str, data_dir: str) -> int:
    """Prepare one set with TensorFlow loaded. Returns the exit status."""
    try:
        tf: Any = importlib.import_module("tensorflow")
        tf.config.set_visible_devices([], "GPU")  # text needs no accelerator, and another process may hold it
        builder = find_builder(name, data_dir)
        if not builder.is_prepared():
            prepare_here(builder)
    except Exception as error:  # whatever it is, the parent process reports it in one line
        print(_one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
