"""The benchmark's contenders train the same model, and its table is written, at tiny shapes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.shapes import GPU, LLAMA, TINY
from icl_jax.config import Config
from tests.parity.hooked import import_transformer_lens

pytestmark = [pytest.mark.slow, pytest.mark.ci]
import_transformer_lens()

from benchmarks.contenders.llama import Llama  # noqa: E402  (after the skip)
from benchmarks.contenders.pytorch import PyTorch, learning_rate  # noqa: E402  (after the skip)
from icl_jax.train.optimizer import learning_rate_fn  # noqa: E402


def losses_of_ours(config: Config, batches: list[np.ndarray]) -> list[float]:
    import jax

    from icl_jax.train.parallel import ParallelStep

    parallel = ParallelStep(config, jax.devices()[:1])
    state, losses = parallel.init_state(), []
    for rows in batches:
        state, metrics = parallel.step(state, parallel.put_rows(rows))
        losses.append(float(np.asarray(metrics.loss_T).mean()))
    return losses


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_pytorch_follows_our_losses_for_twelve_steps(name: str, per_position: bool) -> None:
    """Warm-up, clipping, weight decay and its exceptions all count by then."""
    config = TINY[name]
    batches = peers.random_rows(config, 3, 12)
    theirs = PyTorch(config, "cpu", per_position, is_compiled=False).run(batches)
    ours = losses_of_ours(config, batches)
    if config.model.compute_dtype == "bfloat16":  # too coarse to tell optimisers apart
        np.testing.assert_allclose(theirs, ours, rtol=peers.AGREES["bfloat16"])
        return
    tolerance = 2e-5
    np.testing.assert_allclose(theirs, ours, rtol=tolerance)
    other = replace(config, optimizer=replace(config.optimizer, weight_decay=0.0, lr=3e-3))
    assert not np.allclose(PyTorch(other, "cpu", per_position, is_compiled=False).run(batches), ours, rtol=tolerance)


def test_their_llama_follows_our_losses() -> None:
    (config,) = LLAMA.values()
    small = {"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "d_mlp": 24, "n_ctx": 16, "vocab_size": 32, "n_layers": 2}
    config = replace(config, model=replace(config.model, **small), train=replace(config.train, batch_size=4))
    batches = peers.random_rows(config, 3, 12)
    theirs = Llama(config, "cpu", True, is_compiled=False).run(batches)
    np.testing.assert_allclose(theirs, losses_of_ours(config, batches), rtol=2e-5)


def test_the_shape_for_gpus_agrees_when_it_is_small() -> None:
    """All but its sizes: bfloat16, no MLP, no smearing."""
    config = next(iter(GPU.values()))
    small = {"d_model": 24, "n_heads": 3, "n_ctx": 32, "vocab_size": 64}
    config = replace(config, model=replace(config.model, **small), train=replace(config.train, batch_size=4))
    batches = peers.random_rows(config, 5, 4)
    theirs = PyTorch(config, "cpu", False, is_compiled=False).run(batches)
    np.testing.assert_allclose(theirs, losses_of_ours(config, batches), rtol=peers.AGREES["bfloat16"])


def test_their_learning_rate_is_ours() -> None:
    config = next(iter(TINY.values()))
    config = replace(config, train=replace(config.train, n_steps=50))
    schedule = learning_rate_fn(config)
    np.testing.assert_allclose(
        [learning_rate(config, i) for i in range(50)], [schedule(i) for i in range(50)], rtol=1e-5
    )


def test_who_trains_something_else_is_not_in_the_race() -> None:
    config = next(iter(TINY.values()))
    peers.check_agreement({"icl_jax": [3.0, 2.0], "PyTorch eager": [3.0001, 2.0001]}, config)
    with pytest.raises(SystemExit, match=r"PyTorch eager trains something else: its losses are off by 5.0e-03"):
        peers.check_agreement({"icl_jax": [3.0, 2.0], "PyTorch eager": [3.0, 2.01]}, config)


def test_the_benchmark_runs(tmp_path: Path) -> None:
    args = peers.Args(
        shapes="tiny", only="smeared", rounds=2, seconds=0.02, out=str(tmp_path / "peers.json"),
        contenders=("icl_jax", "PyTorch eager", "TransformerLens"),
    )  # fmt: skip
    peers.main(args)
    (found,) = json.loads((tmp_path / "peers.json").read_text())["shapes"].values()
    # TransformerLens has no smeared keys.
    assert set(found["tokens_per_s"]) == {"icl_jax", "PyTorch eager", "PyTorch eager + record"}
    mine, theirs = (found["tokens_per_s"][name] for name in ("icl_jax", "PyTorch eager"))
    np.testing.assert_allclose(found["ours_over_theirs"]["PyTorch eager"], np.divide(mine, theirs))
    np.testing.assert_allclose(
        np.multiply(found["share_of_peak"]["icl_jax"], found["peak_gflops"]),
        np.multiply(mine, found["flops_per_token"] / 1e9),
    )
