"""A compiled step's needs, its bound, and what is kept of it."""

import importlib.util
from dataclasses import replace

import jax
import pytest

from icl_jax import process
from icl_jax.config import LaunchConfig
from icl_jax.model.params import n_params
from icl_jax.plan import compiled
from icl_jax.plan.chips import Slice
from icl_jax.plan.compiled import Plan, compile_step, estimate, plan_from_json, plan_to_json
from icl_jax.plan.flops import step_flops
from icl_jax.plan.hlo import Collective
from icl_jax.train.parallel import ParallelStep
from tests.train.runs import command, tiny_config


@pytest.fixture(scope="module")
def program() -> compiled.Program:
    found = compile_step(tiny_config(), jax.devices()[:4])
    # As if the CPU's devices were a slice of 2 x 2 chips.
    return replace(found, coordinates=((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)))


def test_memory_is_the_state_and_the_rows(program: compiled.Program) -> None:
    config = tiny_config()
    # Parameters and two moments, the step and Adam's count; of 8 rows of 18 tokens a device has two.
    state = 4 * (3 * n_params(config.model) + 2)
    assert program.argument_bytes == state + 4 * 2 * 18
    assert program.aliased_bytes <= state
    assert program.output_bytes >= state
    others = program.output_bytes - program.aliased_bytes + program.temporary_bytes + program.code_bytes
    assert program.peak_bytes == program.argument_bytes + others


def test_the_bound_is_the_slowest_of_three(program: compiled.Program) -> None:
    config, tpu = tiny_config(), Slice("v5e:2x2")
    slow = replace(program, hbm_bytes=int(819e9), collectives=(Collective("all-reduce", 10**9, (0, 1, 2, 3), 6),))
    e = estimate(config, slow, tpu)
    assert e.hbm_s == pytest.approx(1)
    assert e.interconnect_s == pytest.approx(6 * 2 * 3 / 4 / 100)
    assert (e.bound, e.step_s) == ("memory", e.hbm_s)
    assert e.mfu == pytest.approx(step_flops(config) / (4 * 197e12))
    assert e.tokens_per_s == pytest.approx(8 * 17)
    assert e.hours == pytest.approx(8 / 3600)
    assert e.usd == pytest.approx(e.chip_hours * 1.2)
    assert estimate(config, slow, tpu, price=5.0).usd == pytest.approx(4 * e.hours * 5)
    assert estimate(config, replace(slow, hbm_bytes=0), tpu).bound == "interconnect"
    assert estimate(config, replace(slow, hbm_bytes=0, collectives=()), tpu).bound == "arithmetic"


def test_products_of_float32_take_six_passes(program: compiled.Program) -> None:
    single, half = (tiny_config(model={"compute_dtype": name}) for name in ("float32", "bfloat16"))
    times = [estimate(config, program, Slice("v5e:2x2")).compute_s for config in (single, half)]
    assert times[0] == pytest.approx(6 * times[1])


def test_a_plan_is_kept_whole(program: compiled.Program) -> None:
    e = estimate(tiny_config(), program, Slice("v5e:2x2"))
    facts = {"name": "tiny", "topology": "v5e:2x2", "parallel": "pmap", "n_params": 5}
    for plan in (
        Plan(**facts, program=program, excess_bytes=None, estimate=e),
        Plan(**facts, program=None, excess_bytes=2.5, estimate=None),
    ):
        assert plan_from_json(plan_to_json(plan)) == plan


@pytest.mark.parametrize(
    ("message", "n_bytes"),
    [
        (
            "Ran out of memory in memory space hbm. Exceeded hbm capacity by 4.5G.",
            4.5 * 2**30,
        ),
        ("the total memory required for HLO temporaries (1.00T) exceeds available HBM (15.75G).", 1008.25 * 2**30),
        ("something else", None),
    ],
)
def test_what_the_compiler_says_of_too_little_memory(message: str, n_bytes: float | None) -> None:
    assert compiled._excess_bytes(message) == n_bytes


def test_a_plan_says_what_does_not_fit(program: compiled.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(tiny_config(), launch=LaunchConfig(topology="v5e:2x2"))
    monkeypatch.setattr(compiled, "slice_devices", lambda _name: jax.devices()[:4])
    monkeypatch.setattr(compiled, "compile_step", lambda *_: replace(program, temporary_bytes=16 * 2**30))
    plan = compiled.make_plan("tiny", config)
    assert plan.estimate is None
    assert plan.excess_bytes == pytest.approx(0.25 * 2**30, rel=1e-3)

    def refuse(*_: object) -> None:
        raise compiled.DoesNotFitError(7.0)

    monkeypatch.setattr(compiled, "compile_step", refuse)
    plan = compiled.make_plan("tiny", config)
    assert (plan.program, plan.estimate, plan.excess_bytes) == (None, None, 7.0)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiles for a TPU: make compile-tpu installs what that needs"
)


@pytest.mark.slow
@needs_libtpu
def test_compiles_for_a_slice_that_is_not_here() -> None:
    status, out, err = command("compile", "repeats-2l", "--topology", "v5e:2x2")
    assert (status, err) == (0, "")
    assert "repeats-2l on v5e:2x2: 4 chips, pmap; 41,152 parameters\nfits: " in out
    # 41,152 parameters and 128 losses of four bytes.
    assert "  collective    all-reduce of 165 kB over 4 chips, 1 a step\n" in out


@pytest.mark.slow
@needs_libtpu
def test_devices_that_share_parameters_are_whole_sides_of_a_slice() -> None:
    process.compile_for_tpu()
    config = tiny_config(train={"batch_size": 128, "parallel": "mesh", "fsdp": 32})
    devices = ParallelStep(config, compiled.slice_devices("v5p:4x4x8")).devices
    assert len(devices) == 128
    for first in range(0, 128, 32):
        at = [device.coords for device in devices[first : first + 32]]
        extents = sorted(len(set(axis)) for axis in zip(*at, strict=True))
        assert extents == [1, 4, 8]


@pytest.mark.slow
@needs_libtpu
def test_fsdp_gathers_and_scatters() -> None:
    """Over all three sides at once the compiler takes all-reduces instead, which send twice the bytes."""
    status, out, err = command("compile", "paper-full-4l", "--topology", "v5p:2x4x4", "--mesh", "data=2,fsdp=16")
    assert (status, err) == (0, "")
    assert "all-gather of 67.1 MB over 16 chips" in out  # W_E or W_U: 65,536 x 512 numbers of bfloat16
    assert "reduce-scatter of 134 MB over 16 chips" in out  # its gradient in float32


@pytest.mark.slow
@needs_libtpu
def test_a_step_that_does_not_fit_is_said() -> None:
    status, out, err = command("compile", "paper-full-24l", "--topology", "v5e:2x2", "--mesh", "data=4,fsdp=1")
    assert (status, err) == (1, "")
    assert "does not fit into the 15.75 GiB of a v5e chip, by " in out
