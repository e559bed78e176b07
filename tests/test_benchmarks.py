"""The benchmarks' own arithmetic; their timings are nobody's business here."""

import json
from pathlib import Path

import jax
import pytest

from benchmarks import breakdown, growth
from benchmarks.breakdown import kinds_of
from icl_jax import process

HLO = """\
HloModule jit_step

%fused_product (a: f32[2,2], b: f32[2,2]) -> f32[2,2] {
  %a = f32[2,2]{1,0} parameter(0)
  %dot.1 = f32[2,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}
  ROOT %exponential.1 = f32[2,2]{1,0} exponential(%dot.1)
}

%fused_softmax (a: f32[2,2]) -> f32[2] {
  %exponential.2 = f32[2,2]{1,0} exponential(%a)
  ROOT %reduce.1 = f32[2]{0} reduce(%exponential.2, %zero), dimensions={1}
}

ENTRY %main (x: f32[2,2]) -> f32[2,2] {
  %fusion.3 = f32[2,2]{1,0} fusion(%x, %x), kind=kOutput, calls=%fused_product
  %loop_fusion = f32[2]{0} fusion(%fusion.3), kind=kLoop, calls=%fused_softmax
  %while.7 = (f32[2,2]) while(%tuple), condition=%c, body=%b
  %all-reduce.2 = f32[2,2]{1,0} all-reduce(%fusion.3), to_apply=%add
  %gather.4 = f32[2,2]{1,0} gather(%x, %i), offset_dims={1}
  %add.5 = f32[2,2]{1,0} add(%x, %x)
  ROOT %copy.1 = f32[2,2]{0,1} copy(%add.5)
}
"""


def test_operations_are_told_apart_by_what_they_call() -> None:
    kinds = kinds_of(HLO)
    assert {name: kinds[name] for name in ("fusion.3", "loop_fusion", "while.7", "all-reduce.2")} == {
        "fusion.3": "matrix products",
        "loop_fusion": "exponentials",
        "while.7": "loops",
        "all-reduce.2": "between devices",
    }
    assert (kinds["gather.4"], kinds["add.5"], kinds["copy.1"]) == ("look-ups", "element by element", "copies")


def test_one_size_is_changed_at_a_time() -> None:
    for name, values in growth.RANGES.items():
        for value in values:
            config = growth.changed(growth.BASE, name, value)
            holder = config.train if name == "batch_size" else config.model
            assert getattr(holder, name) == value
            if name == "n_ctx":
                assert config.tokens_per_step == growth.BASE.tokens_per_step


def test_a_breakdown_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "configure_jax", lambda _n: None)
    monkeypatch.setattr(process, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(process, "quiet_libraries", lambda: None)
    tiny = {"tiny": breakdown.SETS["tiny"]["tiny"]}
    monkeypatch.setitem(breakdown.SETS, "tiny", tiny)
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    breakdown.main(breakdown.Args(shapes="tiny", steps=2, out=tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())["tiny"]
    assert found["n_devices"] == 1
    assert {"matrix products", "exponentials", "element by element"} <= set(found["ms"])
    assert 0 < sum(found["ms"].values()) < 1.5 * found["wall_ms"]
