"""Any value of any field either trains a step or is refused in one line, before anything is made."""

from functools import partial
from typing import Any, get_args

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import example, given, settings

from icl_jax import process
from icl_jax.config import Config, UserError, parse_config
from icl_jax.config.tables import to_tables
from icl_jax.config.toml import build_config, field_types
from icl_jax.data import open_corpus, row_ids
from icl_jax.model.execution import resolve
from icl_jax.rundir import probe_steps, snapshot_steps
from icl_jax.telling import is_unicode
from icl_jax.train.may_start import check_vocabulary
from icl_jax.train.optimizer import learning_rate_fn
from icl_jax.train.sizes import check_memory
from icl_jax.train.step import Axes, init_state, train_step
from tests.train.runs import TINY

_GENERATED = ("repeats", "patterns", "stories", "mixture", "markov", "triggers", "classes", "fewshot")
_FIELDS = {
    name: annotation
    for name, annotation in field_types().items()
    if not name.startswith(("tracker.", "launch.", "data.tfds.")) and name not in ("data.source", "data.tokenizer")
}
_WHOLE = (
    -1,
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    17,
    100,
    2**15,
    2**31 - 1,
    2**31,
    2**62,
    2**63 - 1,
    2**63,
    -(2**63),
    3.0,
    1e3,
    True,
    "3",
)
_NUMBERS = (-1.0, 0.0, -0.0, 1e-300, 1e-45, 1e-38, 1e-3, 0.5, 1.0, 2, 3e38, 1e39, float("inf"), float("nan"), "x", True)


def _values(annotation: Any) -> st.SearchStrategy[Any]:
    if get_args(annotation):
        return st.sampled_from([*get_args(annotation), "", 3])
    return {int: st.sampled_from(_WHOLE) | st.integers(), float: st.sampled_from(_NUMBERS) | st.floats()}.get(
        annotation, st.sampled_from([True, False, 0, "true"])
    )


@st.composite
def _changes(draw: st.DrawFn) -> dict[str, Any]:
    """A corpus, and some fields of its config with values of all kinds."""
    source = draw(st.sampled_from(_GENERATED))
    names = [name for name in _FIELDS if name.count(".") == 1 or name.startswith(f"data.{source}.")]
    chosen = draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    return {"data.source": source} | {name: draw(_values(_FIELDS[name])) for name in chosen}


def _config(changes: dict[str, Any]) -> Config:
    tables = to_tables(parse_config(TINY))
    tables["data"] = {name: value for name, value in tables["data"].items() if name != "repeats"}
    tables["model"]["vocab_size"] = {"stories": 1200, "triggers": 100, "classes": 2200}.get(changes["data.source"], 64)
    tables["model"]["n_ctx"] = 6 if changes["data.source"] == "fewshot" else 33
    for name, value in changes.items():
        *sections, field = name.split(".")
        table = tables
        for section in sections:
            table = table.setdefault(section, {})
        table[field] = value
    return build_config(tables)


def _train_a_step(config: Config) -> None:
    """All that a step does but its arithmetic."""
    corpus = open_corpus(config)
    check_vocabulary(config, corpus)
    rows = corpus.rows(row_ids(config.data.seed, config.train.n_steps - 1, config.train.batch_size, corpus.n_rows)[:2])
    assert rows.shape[1] == config.model.n_ctx + 1
    assert 0 <= rows.min() <= rows.max() < config.model.vocab_size
    assert snapshot_steps(config)[-1] == config.train.n_steps
    assert len(probe_steps(config)) <= max(config.probes.n_probes, 1)
    lr = learning_rate_fn(config)
    assert all(np.isfinite(float(lr(jax.numpy.int32(step)))) for step in (0, config.train.n_steps - 1))
    step = partial(
        train_step, config=config, axes=Axes(("devices",), {}),
        execution=resolve(config.model, "cpu", config.train, 1),
    )  # fmt: skip
    state = jax.eval_shape(lambda: init_state(config))
    batch = jax.ShapeDtypeStruct((1, config.train.batch_size, config.model.n_ctx + 1), np.int32)
    jax.eval_shape(jax.vmap(step, in_axes=(None, 0), axis_name="devices"), state, batch)


@settings(max_examples=20)
@given(changes=_changes())
@example(changes={"data.source": "repeats", "model.n_layers": 0, "optimizer.eps": 1e-60})
@example(changes={"data.source": "repeats", "optimizer.decay_change_step": 2**31})
@example(changes={"data.source": "repeats", "model.loss_chunk": 2**62})
@example(changes={"data.source": "markov", "data.markov.order": 40})
def test_any_value_trains_a_step_or_is_refused_in_one_line(changes: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "memory_bytes", lambda: 2 * 10**7)
        try:
            config = _config(changes)
            check_memory(config)
            _train_a_step(config)
        except UserError as error:
            said = str(error)
            assert "\n" not in said
            assert is_unicode(said)
            assert len(said) < 600
            assert any(name.rpartition(".")[2] in said for name in changes), (changes, said)
