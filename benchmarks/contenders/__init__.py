"""The same training step by icl_jax and its peers, each made by `(config, device, per_position)`."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from icl_jax.config import Config


class Contender(Protocol):
    """Trains one step after another on rows that it is handed."""

    def run(self, batches: list[np.ndarray]) -> list[float]:
        """One step per batch of rows int32 [B, T + 1]; the mean loss of each, in nats, once all are done."""
        ...

    def release(self) -> None:
        """Give back the memory of a GPU that is only kept for the next step."""
        ...


def _ours(config: Config, device: str, per_position: bool) -> Contender:
    from benchmarks.contenders.ours import Ours

    return Ours(config, device)


def _eager(config: Config, device: str, per_position: bool) -> Contender:
    from benchmarks.contenders.pytorch import PyTorch

    return PyTorch(config, device, per_position, is_compiled=False)


def _compiled(config: Config, device: str, per_position: bool) -> Contender:
    from benchmarks.contenders.pytorch import PyTorch

    return PyTorch(config, device, per_position, is_compiled=True)


def _transformer_lens(config: Config, device: str, per_position: bool) -> Contender:
    from benchmarks.contenders.transformer_lens import TransformerLens

    return TransformerLens(config, device, per_position)


def _llama(config: Config, device: str, per_position: bool) -> Contender:
    from benchmarks.contenders.llama import Llama

    return Llama(config, device, per_position)


MAKERS: dict[str, Callable[[Config, str, bool], Contender]] = {
    "icl_jax": _ours,
    "PyTorch eager": _eager,
    "torch.compile": _compiled,
    "TransformerLens": _transformer_lens,
    "LlamaForCausalLM": _llama,
}
