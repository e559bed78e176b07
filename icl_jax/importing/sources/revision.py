"""Names of revisions, and the steps in them."""

import itertools
import re
from dataclasses import dataclass, replace

from icl_jax.config import UserError

_NAME = re.compile(
    r"(?:stage(\d+)-)?(?:ingredient(\d+)-)?(?:global_)?(?:step|checkpoint|ckpt)[-_]?0*(\d+)(?:-tokens(\d+)B|-(\d+)BT)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One checkpoint of a source."""

    name: str
    """As the source calls it: a folder, a branch."""
    step: int | None = None
    """None: its name does not say."""
    tokens: int | None = None
    """Seen in training before, where the name says so; rounded."""
    stage: tuple[int, int] = (1, 0)
    """Of training, and its ingredient: later ones count their steps from 0 again."""


def revision_of(name: str) -> Revision:
    """What a name says: step1000, checkpoint-1000, ckpt_010, step1000-tokens4B, stage1-step10-tokens3B, step-10-2BT."""
    match = _NAME.fullmatch(name)
    if match is None:
        return Revision(name=name)
    stage, ingredient, step, billions, more_billions = match.groups()
    tokens = billions or more_billions
    return Revision(
        name=name, step=int(step), tokens=None if tokens is None else int(tokens) * 10**9,
        stage=(int(stage or 1), int(ingredient or 0)),
    )  # fmt: skip


def series_of(names: list[str], stage: str = "") -> tuple[list[Revision], list[str]]:
    """Revisions in the order of their steps, and what is left out, in words.

    stage: one of training, such as 2 or 2-ingredient3, or several in the order of training with commas between, whose
    steps and tokens are then counted on from the last of the stage before; empty: the first. Raises UserError for
    stages that are not there, and where two revisions are of one step.
    """
    found = [revision for name in names if (revision := revision_of(name)).step is not None]
    there = sorted({revision.stage for revision in found})
    wanted = _parse_stages(stage) if stage else there[:1]
    for one in wanted:
        if one not in there:
            known = ", ".join(map(_stage_text, there)) or "none"
            raise UserError(f"--stage = {stage!r}: there is no {_stage_text(one)}; there are {known}")
    series: list[Revision] = []
    for one in wanted:
        before = series[-1] if series else Revision(name="", step=0, tokens=0)
        part = sorted((r for r in found if r.stage == one), key=lambda r: (r.step or 0, r.name))
        for a, b in itertools.pairwise(part):
            if a.step == b.step:
                raise UserError(f"{a.name} and {b.name}: are both of step {a.step}; name one of them")
        # Of a stage that begins where the one before ended, the step 0 is that end again.
        part = [r for r in part if r.step or not series]
        series += [
            replace(
                r, step=(before.step or 0) + (r.step or 0),
                tokens=None if r.tokens is None or before.tokens is None else before.tokens + r.tokens,
            )
            for r in part
        ]  # fmt: skip
    left = [one for one in there if one not in wanted]
    words = f"stages that are left out, each counting its steps from 0: {', '.join(map(_stage_text, left))}"
    return series, [f"{words} (--stage names those to take)"] if left else []


def _parse_stages(text: str) -> list[tuple[int, int]]:
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:stage)?(\d+)(?:-ingredient(\d+))?\s*", part)
        if match is None:
            raise UserError(f"--stage = {text!r}: must be stages such as 1 or 2-ingredient3, with commas between")
        found.append((int(match[1]), int(match[2] or 0)))
    return found


def _stage_text(stage: tuple[int, int]) -> str:
    return f"{stage[0]}-ingredient{stage[1]}" if stage[1] else str(stage[0])


def choose_steps(revisions: list[Revision], steps: str) -> tuple[list[Revision], list[int]]:
    """Those that `--steps` names (1000,2000 or 0-512 or both), and the steps among them that are not there.

    Raises UserError for a text that is no list of steps, and where none is there.
    """
    if not steps:
        return revisions, []
    single: set[int] = set()
    ranges: list[tuple[int, int]] = []
    for part in steps.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise UserError(f"--steps = {steps!r}: must be steps and ranges of steps such as 0,1000,2000-4000")
        first, last = match.groups()
        if last is None:
            single.add(int(first))
        else:
            ranges.append((int(first), int(last)))
    chosen = [r for r in revisions if r.step in single or any(a <= (r.step or 0) <= b for a, b in ranges)]
    if not chosen:
        there = sorted(r.step or 0 for r in revisions)
        raise UserError(f"--steps = {steps!r}: no such step; there are {len(there)} from {there[0]} to {there[-1]}")
    return chosen, sorted(single - {r.step for r in chosen if r.step is not None})
