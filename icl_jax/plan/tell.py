"""A plan in words, and several as a table."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from icl_jax.plan.chips import Slice

if TYPE_CHECKING:
    from icl_jax.plan.compiled import Plan

_COLUMNS = ("config", "parameters", "slice", "devices", "GiB a chip", "step, s", "bound by", "MFU", "tokens/s", "hours",
            "chip-hours", "cost")  # fmt: skip


def table_rows(plans: Sequence["Plan"]) -> list[str]:
    """A Markdown table."""
    rows = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    for plan in plans:
        cells = [plan.name, short(plan.n_params), plan.topology, plan.parallel]
        if plan.estimate is None or plan.program is None:
            cells += [f"does not fit{_excess(plan)}"] + [""] * 7
        else:
            e = plan.estimate
            cost = "" if e.usd is None else f"${e.usd:,.0f}"
            cells += [f"{_gib(plan.program.peak_bytes):.1f}", f"{e.step_s:.3g}", e.bound, f"{100 * e.mfu:.0f} %"]
            cells += [short(e.tokens_per_s), f"{e.hours:,.1f}", f"{e.chip_hours:,.0f}", cost]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def describe(plan: "Plan") -> Iterator[str]:
    """A plan in lines: whether it fits, what it moves and sends, the least time and cost."""
    tpu = Slice(plan.topology)
    hbm = f"{tpu.chip.hbm_gib:g} GiB of a {plan.topology.partition(':')[0]} chip"
    yield f"{plan.name} on {plan.topology}: {tpu.n_chips} chips, {plan.parallel}; {plan.n_params:,} parameters"
    program, e = plan.program, plan.estimate
    if program is None or e is None:
        yield f"does not fit into the {hbm}{_excess(plan)}: try more chips, a larger train.fsdp or train.accum_steps"
        return
    more = program.output_bytes - program.aliased_bytes
    yield f"fits: {_gib(program.peak_bytes):.2f} of the {hbm}"
    yield (
        f"  memory        arguments {_gib(program.argument_bytes):.2f} GiB (reused for outputs"
        f" {_gib(program.aliased_bytes):.2f}), other outputs {_gib(more):.2f}, temporaries"
        f" {_gib(program.temporary_bytes):.2f}, code {_gib(program.code_bytes):.2f}"
    )
    yield (
        f"  arithmetic    {short(e.step_flops, 'FLOP')} a step by the model's sizes, {short(e.executed_flops, 'FLOP')}"
        f" with what is computed again; the compiler's count, {short(program.xla_flops, 'FLOP')} a chip, has loops once"
        " and no kernels"
    )
    yield (
        f"  traffic       {short(program.hbm_bytes, 'B')} a chip between memory and cores; the compiler's count,"
        f" {short(program.xla_bytes, 'B')}, has loops once"
    )
    for c in program.collectives:
        yield f"  collective    {c.kind} of {short(c.n_bytes, 'B')} over {len(c.group)} chips, {c.count} a step"
    yield (
        f"  step          at least {e.step_s:.3g} s, bound by {e.bound}: arithmetic {e.compute_s:.3g}, memory"
        f" {e.hbm_s:.3g}, interconnect {e.interconnect_s:.3g}"
    )
    cost = "" if e.usd is None else f", ${e.usd:,.0f} at ${e.usd_per_chip_hour:.2f} a chip-hour"
    yield (
        f"  run           MFU at most {100 * e.mfu:.0f} %, {short(e.tokens_per_s)} tokens/s;"
        f" {short(e.n_steps * e.tokens_per_step)} tokens in {e.hours:,.1f} hours, {e.chip_hours:,.0f} chip-hours{cost}"
    )


def _excess(plan: "Plan") -> str:
    return "" if plan.excess_bytes is None else f", by {_gib(plan.excess_bytes):.2f} GiB"


def _gib(n_bytes: float) -> float:
    return n_bytes / 2**30


def short(number: float, unit: str = "") -> str:
    """Three digits and a prefix: 1.23 GB."""
    prefixes = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
    prefix, size = next((entry for entry in prefixes if number >= entry[1]), ("", 1))
    return f"{number / size:.3g} {prefix}{unit}".rstrip()
