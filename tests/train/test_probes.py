"""Live measures against the measurements of the same names, taken from the snapshots of the same steps."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from icl_jax.data import open_corpus
from icl_jax.maths.head_scores import repeated_tokens
from icl_jax.maths.icl_score import icl_score, icl_windowed
from icl_jax.measures import head_scores
from icl_jax.measures.measurement import Measurement
from icl_jax.measures.table import TABLE
from icl_jax.model.loss import losses
from icl_jax.rundir.record import HEAD_SCORES
from tests.train.runs import recorded, snapshot, tiny_config, train_here


def test_the_record_has_room_for_what_is_marked_live() -> None:
    live = [name for m in TABLE if isinstance(m, Measurement) for name in m.live]
    assert tuple(live) == HEAD_SCORES
    assert all(m.variables[name].dims == ("layer", "head") for m in TABLE if isinstance(m, Measurement)
               for name in m.live)  # fmt: skip


def test_a_probe_is_the_measurement_of_that_step(tmp_path: Path) -> None:
    config = tiny_config()
    train_here(config, tmp_path / "run")
    corpus, probes = open_corpus(config), config.probes
    repeated = repeated_tokens(
        corpus.probe_tokens(), corpus.bos_id, config.model.n_ctx, n_sequences=probes.n_sequences,
        repeat_len=probes.repeat_len, n_repeats=probes.n_repeats, seed=config.data.seed,
    )  # fmt: skip
    natural = corpus.held_out(probes.n_sequences)[:, : config.model.n_ctx]
    record = recorded(tmp_path / "run")
    assert len(record["probe_step"]) == 4
    for index, step in enumerate(record["probe_step"]):
        params = {name: jnp.asarray(value) for name, value in snapshot(tmp_path / "run", int(step)).items()}
        taken = {
            "prefix_matching": head_scores.prefix_matching(params, repeated, config.model),
            "previous_token": head_scores.previous_token(params, natural, config.model),
        }
        assert taken.keys() == set(HEAD_SCORES)
        for name, expected in taken.items():
            np.testing.assert_allclose(record[name][index], expected, rtol=1e-5, atol=1e-7, err_msg=f"{step} {name}")
        # The rows' own scores, by the loss of each.
        loss_BT = losses(params, jnp.asarray(corpus.held_out(probes.held_out_rows)), config.model)
        for name, score in (("icl_sem", icl_windowed), ("icl_score_sem", icl_score)):
            by_row = score(np.asarray(loss_BT, np.float64))
            expected = by_row.std(ddof=1) / np.sqrt(len(by_row))
            np.testing.assert_allclose(record[name][index], expected, rtol=1e-4, err_msg=f"{step} {name}")
