"""The reading of compiled programs, on programs that the CPU's compiler made and on lines that the TPU's made."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import Config
from icl_jax.model.params import n_params, param_shapes
from icl_jax.plan.hlo import HloProgram, shape_bytes
from icl_jax.train.parallel import ParallelStep, sharded_axes
from tests.train.runs import tiny_config


@cache
def _step_text(n_devices: int, **train: Any) -> tuple[Config, str]:
    config = tiny_config(train=train)
    text = ParallelStep(config, jax.devices()[:n_devices]).lower().compile().as_text()
    assert text is not None
    return config, text


def _bytes_by_kind(text: str, n_devices: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for c in HloProgram(text, n_devices).collectives():
        found[c.kind] = found.get(c.kind, 0) + c.n_bytes * c.count
    return found


@pytest.mark.parametrize("n_devices", [2, 8])
def test_pmap_adds_up_gradients_and_losses_once(n_devices: int) -> None:
    config, text = _step_text(n_devices)
    # float32: a number for each parameter and one for each position.
    assert _bytes_by_kind(text, n_devices) == {"all-reduce": 4 * (n_params(config.model) + config.model.n_ctx)}
    assert all(c.group == tuple(range(n_devices)) for c in HloProgram(text, n_devices).collectives())


@pytest.mark.parametrize("accum_steps", [1, 2])
def test_fsdp_gathers_parameters_and_scatters_gradients(accum_steps: int) -> None:
    config, text = _step_text(4, parallel="mesh", fsdp=2, accum_steps=accum_steps)
    axes, shapes = sharded_axes(config), param_shapes(config.model)
    sharded = sum(4 * math.prod(shapes[name]) for name in axes)
    found = _bytes_by_kind(text, 4)
    # The compiler may gather once for all micro-steps: the parameters are the same.
    assert found["all-gather"] in (sharded, accum_steps * sharded)
    assert found["reduce-scatter"] == accum_steps * sharded
    # Shards over the data axis, the other parameters, the losses and the norm of the gradient over all.
    whole = 4 * (n_params(config.model) + config.model.n_ctx) - sharded
    assert found["all-reduce"] == sharded // 2 + whole + 4
    groups = {c.kind: c.group for c in HloProgram(text, 4).collectives() if c.kind != "all-reduce"}
    assert set(groups.values()) == {(0, 1)}


def _compiled(fn: Callable[..., Any], *shapes: tuple[int, ...]) -> tuple[Any, HloProgram]:
    compiled = jax.jit(fn).lower(*(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)).compile()
    return compiled, HloProgram(compiled.as_text(), 1)


def test_traffic_without_loops_is_the_compilers_own_count() -> None:
    compiled, program = _compiled(lambda x, y: jnp.sin(x) @ y, (32, 48), (48, 16))
    assert program.hbm_bytes == compiled.cost_analysis()["bytes accessed"]


def test_loops_count_as_often_as_they_run() -> None:
    def looped(x: jax.Array, ys: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, y: (jnp.tanh(x @ y), None), x, ys)[0]

    compiled, program = _compiled(looped, (8, 24), (7, 24, 24))
    once = HloProgram(compiled.as_text(), 1, loops_once=True)
    # A step reads x and its own slice of ys, and writes x: not all of ys each time.
    least = 4 * (2 * 8 * 24 + 24 * 24)
    assert 7 * least <= program.hbm_bytes <= 4 * 7 * least
    assert program.hbm_bytes - once.hbm_bytes > 5 * least


def test_a_loop_without_a_note_takes_the_bound_of_its_condition() -> None:
    text = """HloModule m

%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p = (s32[]{:T(128)}, f32[16]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[16]{0:T(128)} get-tuple-element(%p), index=1
  %sum = f32[16]{0:T(128)} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %t = (s32[]{:T(128)}, f32[16]{0:T(128)}) tuple(%i, %sum)
}

%condition (q: (s32[], f32[16])) -> pred[] {
  %bound = s32[]{:T(128)} constant(32), metadata={op_name="jit(f)"}
  %q = (s32[]{:T(128)}, f32[16]{0:T(128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %bound), direction=LT
}

ENTRY %main (a: (s32[], f32[16])) -> (s32[], f32[16]) {
  %a = (s32[]{:T(128)}, f32[16]{0:T(128)}) parameter(0)
  ROOT %w = (s32[]{:T(128)}, f32[16]{0:T(128)}) while(%a), condition=%condition, body=%body
}
"""
    (found,) = HloProgram(text, 8).collectives()
    # Groups are the columns of 0..7 in four rows of two.
    assert (found.kind, found.n_bytes, found.group, found.count) == ("all-reduce", 64, (0, 2, 4, 6), 32)
    with pytest.raises(ValueError, match="loop w: its condition has 0 whole numbers"):
        HloProgram(text.replace("constant(32)", "parameter(1)"), 8).collectives()


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("{{1,3},{0,2}}", (1, 3)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", (0, 1, 2, 3)),
        ("mesh['data'=4,'fsdp'=2] {'data'}", (0, 2, 4, 6)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("{}", tuple(range(8))),
    ],
)
def test_every_way_to_write_a_group_of_devices(groups: str, first: tuple[int, ...]) -> None:
    text = f"""HloModule m

ENTRY %main (x: f32[16]) -> f32[16] {{
  %x = f32[16]{{0}} parameter(0)
  ROOT %sum = f32[16]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add
}}
"""
    (found,) = HloProgram(text, 8).collectives()
    assert found.group == first
    with pytest.raises(ValueError, match="all-reduce: unknown form of a group of devices"):
        HloProgram(text.replace(f"={groups}", "=mesh['a'=8] {'a':(1)2}"), 8).collectives()


def test_a_gather_spread_over_fusions_is_one() -> None:
    """The TPU compiler's form of a collective that runs beside arithmetic."""
    fused = """%fused_N (p_N: f32[4]) -> f32[16] {
  %p_N = f32[4]{0:T(128)} parameter(0)
  ROOT %gather_N = f32[16]{0:T(128)} all-gather(%p_N), replica_groups={{0,1,2,3}}, dimensions={0}, CHAIN
}

"""
    main = """ENTRY %main (a: f32[4]) -> f32[16] {
  %a = f32[4]{0:T(128)} parameter(0)
  %start = f32[16]{0:T(128)} fusion(%a), kind=kCustom, calls=%fused_0
  %middle = f32[16]{0:T(128)} fusion(%a), kind=kOutput, calls=%fused_1
  ROOT %done = f32[16]{0:T(128)} fusion(%a), kind=kCustom, calls=%fused_2
}
"""
    for chains, expected in (("777", 1), ("778", 2), ("789", 3)):
        parts = [
            fused.replace("_N", f"_{i}").replace("CHAIN", f'frontend_attributes={{chain_id="{chain}"}}')
            for i, chain in enumerate(chains)
        ]
        (found,) = HloProgram("HloModule m\n\n" + "".join(parts) + main, 4).collectives()
        assert (found.kind, found.n_bytes, found.group, found.count) == ("all-gather", 64, (0, 1, 2, 3), expected)


@pytest.mark.parametrize(
    ("text", "everywhere", "in_memory"),
    [
        ("f32[3,5]{1,0:T(8,128)}", 60, 60),
        ("bf16[2,512]{1,0:T(8,128)(2,1)S(1)}", 2048, 0),
        ("(s32[], /*index=1*/f32[7]{0}, pred[9]{0:S(1)})", 41, 32),
        ("f32[]", 4, 4),
        ("token[]", 0, 0),
    ],
)
def test_bytes_of_types(text: str, everywhere: int, in_memory: int) -> None:
    assert shape_bytes(text) == everywhere
    assert shape_bytes(text, on_chip=False) == in_memory
