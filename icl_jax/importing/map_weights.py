"""From a checkpoint as its family writes it to a config and parameters of ours."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from icl_jax.config import ModelConfig, UserError
from icl_jax.importing.checkpoint import Checkpoint
from icl_jax.importing.families.family import Arrays, Family, Options, Part
from icl_jax.importing.families.table import family_of
from icl_jax.importing.formats.tensor import Tensor, Tensors

MAX_CTX = 512
"""Of the rows that are measured on: the paper's."""
_NARROW = ("float16", "bfloat16")


def read_config(
    config: dict[str, Any], where: str, n_ctx: int = 0, ignored: Iterable[str] = ()
) -> tuple[Family, ModelConfig, Options]:
    """The family and architecture that a config.json says, with a context of n_ctx; 0: the model's, at most 512.

    Raises UserError for a family, an option or a value that is not represented here, by name.
    """
    family = family_of(config, where)
    options = Options(config, where, family.defaults)
    options.ignore(*ignored)
    fields = family.model(options)
    options.check_all_read()
    longest = fields["n_ctx"]
    if n_ctx > longest:
        raise UserError(f"--n-ctx = {n_ctx}: must be at most {longest}, the context of {where}")
    try:
        model = ModelConfig(**fields | {"n_ctx": n_ctx or min(longest, MAX_CTX)})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if model.window >= model.n_ctx and not model.window_rotary_base:
        model = replace(model, window=0, window_layers=())  # nothing is cut off
    return family, model, options


def map_weights(checkpoint: Checkpoint, *, n_ctx: int = 0, ignored: Iterable[str] = ()) -> tuple[ModelConfig, Arrays]:
    """The config, and the parameters by our names: in the type of the files where that holds all bits, else float32.

    Raises UserError as `read_config` does, and for a tensor that is missing, has another shape than the config says,
    is not finite, or is none of the family's.
    """
    path = checkpoint.path / "config.json" if checkpoint.path.is_dir() else checkpoint.path
    family, model, options = read_config(checkpoint.config, str(path), n_ctx, ignored)
    tensors = {_without(name, family.prefixes): tensor for name, tensor in checkpoint.tensors.items()}
    where = checkpoint.path
    _check_strays(tensors, family, model, where)
    arrays, dtypes = {}, {}
    for name, part in family.parts.items():
        if name == "W_U" and model.tied_unembedding:
            continue
        found = _tensors_of(part, tensors, model, where)
        if found:
            dtypes[name] = found[0].dtype
            arrays[name] = _stacked(name, part, found, model, where)
    options.dtype = dtypes.get("W_E", options.dtype)
    from icl_jax.model.params import param_shapes  # with JAX, without which can be refused

    shapes = param_shapes(model)
    if family.norms_without_weights(options):
        norms = ("ln1_w", "ln2_w", "ln_final_w")
        arrays |= {name: np.ones(shapes[name], np.float32) for name in norms if name in shapes}
    _check_present(arrays, family, shapes, where)
    for fold in family.folds:
        fold(arrays, model, options)
    for name, shape in shapes.items():
        if name not in arrays:
            shown = family.parts[name].name if name in family.parts else name
            raise UserError(f"{where}: {shown}: missing ({name})")
        if arrays[name].shape != shape:
            what = f"{name} has the shape {list(arrays[name].shape)}, its config says {list(shape)}"
            raise UserError(f"{where}: {what}")
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{where}: {name} holds numbers that are not finite")
    return model, {name: _narrowed(arrays[name], dtypes.get(name)) for name in shapes}


def _without(name: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def _check_strays(tensors: Tensors, family: Family, model: ModelConfig, where: object) -> None:
    layers = range(max(1, model.n_layers))
    known = {part.name.format(layer) for part in family.parts.values() for layer in layers}
    for name in tensors:
        if name not in known and not (family.left_out and re.fullmatch(family.left_out, name)):
            raise UserError(f"{where}: {name}: is no tensor of the family {family.name} with {model.n_layers} layers")


def _tensors_of(part: Part, tensors: Tensors, model: ModelConfig, where: object) -> list[Tensor]:
    """Of each layer, or the one. Raises UserError where some layers lack it."""
    names = [part.name.format(layer) for layer in range(model.n_layers)] if "{}" in part.name else [part.name]
    missing = [name for name in names if name not in tensors]
    if missing and len(missing) < len(names):
        raise UserError(f"{where}: {missing[0]}: missing, though other layers have it")
    return [] if missing else [tensors[name] for name in names]


def _stacked(name: str, part: Part, found: list[Tensor], model: ModelConfig, where: object) -> np.ndarray:
    def one(tensor: Tensor) -> np.ndarray:
        if tensor.dtype.name not in ("float32", "float64", *_NARROW):
            raise UserError(f"{where}: {part.name} is of the type {tensor.dtype.name}: quantised weights are not read")
        array = tensor.read().astype(np.float32, copy=False)
        try:
            return array if part.layout is None else part.layout.read(array, model)
        except ValueError:
            what = f"{part.name} has the shape {list(tensor.shape)}, which is not that of the config"
            raise UserError(f"{where}: {what}") from None

    if "{}" not in part.name:
        return np.asarray(one(found[0]), order="C")
    first = one(found[0])
    whole = np.empty((len(found), *first.shape), np.float32)
    for layer, tensor in enumerate(found):
        array = first if layer == 0 else one(tensor)
        if array.shape != first.shape:
            raise UserError(f"{where}: {part.name.format(layer)}: has another shape than that of layer 0")
        whole[layer] = array
    return whole


def _check_present(arrays: Arrays, family: Family, shapes: dict[str, tuple[int, ...]], where: object) -> None:
    """Raise UserError for a tensor that the folds need, or whose bias stands there without it."""
    for name, part in family.parts.items():
        is_needed = name in shapes and not name.startswith("b_") and name != "W_U"
        if is_needed and name not in arrays:
            raise UserError(f"{where}: {part.name}: missing ({name})")
        if name not in arrays:
            continue
        if not name.endswith("_") and name not in shapes:
            raise UserError(f"{where}: {part.name}: is there, though its config says that the model has no {name}")


def _narrowed(array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    """In the type of the file, half the bytes, where folding has left it there."""
    if dtype is None or dtype.name not in _NARROW:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    return narrow if np.array_equal(narrow.astype(np.float32), array) else array
