"""LlamaForCausalLM of `transformers`, compiled, trained as the model of `pytorch.py` is."""

import torch
from torch import nn

from benchmarks.contenders.pytorch import PyTorch, initial_params
from icl_jax.config import Config
from icl_jax.export.as_family import form_of


class _Logits(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        form = form_of(config.model)
        if form.family.name != "llama":
            raise ValueError(f"a {form.family.name} is no Llama")
        written = {name: value for name, value in form.config.items() if name not in ("architectures", "model_type")}
        self.llama = LlamaForCausalLM(LlamaConfig(**written, attn_implementation="sdpa"))
        tensors = {name: torch.from_numpy(array) for name, array in form.tensors(initial_params(config)).items()}
        self.llama.load_state_dict(tensors)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.llama(tokens, use_cache=False).logits
        return logits


class Llama(PyTorch):
    """Its attention is `scaled_dot_product_attention`, chosen as in its own training."""

    def __init__(self, config: Config, device: str, per_position: bool, *, is_compiled: bool = True) -> None:
        super().__init__(config, device, per_position, is_compiled=is_compiled)

    def _make_model(self, config: Config) -> nn.Module:
        return _Logits(config)
