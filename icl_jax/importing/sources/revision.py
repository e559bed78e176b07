"""Names of revisions, and the steps in them."""

import itertools
import re
from dataclasses import dataclass

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


def series_of(names: list[str]) -> tuple[list[Revision], list[str]]:
    """Revisions in the order of their steps, of the first stage; and what is left out, in words.

    Raises UserError where two are of one step.
    """
    found = [revision for name in names if (revision := revision_of(name)).step is not None]
    first = min((revision.stage for revision in found), default=(1, 0))
    later = [revision.name for revision in found if revision.stage != first]
    series = sorted((r for r in found if r.stage == first), key=lambda r: (r.step or 0, r.name))
    for one, other in itertools.pairwise(series):
        if one.step == other.step:
            raise UserError(f"{one.name} and {other.name}: are both of step {one.step}; name one of them")
    words = "of later stages are left out, whose steps begin at 0 again"
    return series, [f"{len(later)} {words}: {later[0]} ..."] if later else []


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
