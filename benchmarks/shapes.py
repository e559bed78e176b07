"""The models that training is timed on: small shapes for a CPU, the paper's small shape for a GPU."""

from icl_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def _config(batch_size: int, **model: object) -> Config:
    # Rows are random tokens: what stands in them does not change the time of a step.
    return Config(
        model=ModelConfig(**({"positions": "shortformer", "norm": "rmsnorm", "smeared_keys": False} | model)),  # type: ignore[arg-type]
        data=DataConfig(source="repeats"),
        train=TrainConfig(n_steps=100_000, batch_size=batch_size),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=10, weight_decay=0.1, clip_norm=1.0),
    )


CPU = {
    "2 layers, d 128": _config(32, n_layers=2, d_model=128, n_heads=4, n_ctx=256, vocab_size=1024),
    "2 layers, d 64": _config(32, n_layers=2, d_model=64, n_heads=4, n_ctx=128, vocab_size=64),
    "4 layers, d 256, MLP": _config(8, n_layers=4, d_model=256, n_heads=4, d_mlp=1024, n_ctx=512, vocab_size=4096),
    "1 layer, d 128, smeared": _config(
        32, n_layers=1, d_model=128, n_heads=4, n_ctx=256, vocab_size=1024, smeared_keys=True
    ),
}

_PAPER = {"n_layers": 2, "d_model": 768, "n_heads": 12, "vocab_size": 65536, "compute_dtype": "bfloat16"}
GPU = {
    "paper, T 1024": _config(32, n_ctx=1024, **_PAPER),
    "paper, T 8192": _config(4, n_ctx=8192, **_PAPER),
}

TINY = {
    "tiny": _config(4, n_layers=2, d_model=16, n_heads=2, d_mlp=32, n_ctx=16, vocab_size=32),
    "tiny, smeared": _config(4, n_layers=1, d_model=16, n_heads=2, n_ctx=16, vocab_size=32, smeared_keys=True),
    "tiny, bfloat16": _config(4, n_layers=1, d_model=16, n_heads=2, n_ctx=16, vocab_size=32, compute_dtype="bfloat16"),
}
LLAMA = {
    "4 layers, d 256, Llama": _config(
        8, n_layers=4, d_model=256, n_heads=8, n_kv_heads=4, d_mlp=704, n_ctx=512, vocab_size=4096, positions="rotary",
        activation="silu", gated_mlp=True,
    )
}  # fmt: skip
SETS = {"llama": LLAMA, "cpu": CPU, "gpu": GPU, "tiny": TINY}
