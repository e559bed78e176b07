"""Opens models of `modeling_icl_jax.py` in TransformerLens 4, from the folder that holds this file:

    from transformer_lens_adapter import open_bridge

    model = open_bridge("step1000")

Hooks have its names. `hook_q` and `hook_k` are what the projections give, before norms, rotation and smearing.
"""

from pathlib import Path
from typing import Any

from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    MLPBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.block import ParallelBlockBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoModelForCausalLM, AutoTokenizer

_ARCHITECTURE = "IclJaxForCausalLM"


class IclJaxArchitectureAdapter(ArchitectureAdapter):
    """All options: what a model lacks is left out."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        cfg.attn_only = not cfg.d_mlp
        self.weight_processing_conversions = self._qkvo_weight_conversions(include_biases=True)
        parts: dict[str, GeneralizedComponent] = {
            "ln1": GeneralizedComponent(name="ln1", config=cfg),
            "ln1_post": GeneralizedComponent(name="ln1_post", config=cfg),
            "attn": AttentionBridge(
                name="self_attn",
                config=cfg,
                maintain_native_attention=True,
                submodules={letter: LinearBridge(name=f"{letter}_proj") for letter in "qkvo"},
            ),
        }
        if cfg.d_mlp:
            parts |= {
                "ln2": GeneralizedComponent(name="ln2", config=cfg, optional=True),
                "ln2_post": GeneralizedComponent(name="ln2_post", config=cfg),
                "mlp": MLPBridge(
                    name="mlp",
                    config=cfg,
                    submodules={
                        "gate": LinearBridge(name="gate_proj", optional=True),
                        "in": LinearBridge(name="up_proj"),
                        "out": LinearBridge(name="down_proj"),
                    },
                ),
            }
        kind = ParallelBlockBridge if getattr(cfg, "use_parallel_residual", False) else BlockBridge
        blocks = kind(name="model.layers", config=cfg, submodules=parts)
        if not cfg.d_mlp:
            blocks.hook_aliases = {
                name: where for name, where in blocks.hook_aliases.items() if not where.startswith(("ln2", "mlp"))
            }
        self.component_mapping = {
            "embed": EmbeddingBridge(name="model.embed_tokens"),
            "blocks": blocks,
            "ln_final": GeneralizedComponent(name="model.ln_final", config=cfg),
            "unembed": UnembeddingBridge(name="lm_head", config=cfg),
        }


def open_bridge(folder: str, **options: Any) -> Any:
    """A `TransformerBridge` of one snapshot. `options` are those of transformers' `from_pretrained`, `revision` say.

    Its `boot_transformers` asks no registered adapter, and wants a tokenizer, which a corpus of token ids has not.
    """
    ArchitectureAdapterFactory.register_adapter(_ARCHITECTURE, IclJaxArchitectureAdapter)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()
    has_tokenizer = not Path(folder).is_dir() or (Path(folder) / "tokenizer.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(folder, **options) if has_tokenizer else None
    return build_bridge_from_module(
        model, _ARCHITECTURE, hf_config=model.config, tokenizer=tokenizer, model_name=str(folder)
    )
