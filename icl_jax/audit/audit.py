"""A series, looked at as a whole: of a run directory, a folder of checkpoints, a repository."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from icl_jax.analysis.dataset import load_dataset
from icl_jax.audit.files import judge_files, judge_gaps
from icl_jax.audit.finding import Finding
from icl_jax.audit.judge import equal_checkpoints, judge
from icl_jax.audit.loss import judge_loss
from icl_jax.audit.trajectory import Tensors, Trajectory, follow, layers_apart
from icl_jax.config import UserError
from icl_jax.importing.checkpoint import open_checkpoint
from icl_jax.importing.sources.revision import Revision, choose_steps
from icl_jax.importing.sources.source import Source
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import saved_steps

Tell = Callable[[str], None]
_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was looked at and what was found."""

    name: str
    steps: tuple[int, ...]
    findings: list[Finding]
    notes: list[str]
    """What is no fault, and what could not be looked at."""
    trajectory: Trajectory | None = field(default=None, repr=False)
    """None where the files alone were looked at."""


def audit_run(run: RunDir, tell: Tell = lambda _: None) -> Audit:
    """The snapshots of a run directory, trained here or imported. Raises UserError where it has none."""
    entries = run.manifest.read()
    if not entries:
        raise UserError(f"{run.path}: has no snapshots yet")
    findings, notes, left_out = equal_checkpoints({entry.step: entry.sha256 for entry in entries})
    findings += _origin(run)
    listed = {entry.step for entry in entries}
    for step in saved_steps(run.root / "snapshots"):
        if step not in listed:
            findings.append(Finding(steps=(step,), kind="stray", said="a snapshot that the manifest does not name"))

    def snapshots() -> Iterator[tuple[int, Tensors]]:
        for i, entry in enumerate(entries):
            if entry.step not in left_out:
                try:
                    params = run.load_params(entry.step)
                except UserError as error:
                    findings.append(Finding(steps=(entry.step,), kind="damaged", said=str(error)))
                    continue
                yield entry.step, layers_apart(params, run.config.model)
                _tell_now_and_then(tell, i + 1, len(entries))

    trajectory = follow(snapshots())
    findings += [] if trajectory is None else judge(trajectory)
    findings += _losses(run, notes)
    return _audit(str(run.path), [entry.step for entry in entries], findings, notes, trajectory)


def audit_source(source: Source, steps: str = "", tell: Tell = lambda _: None) -> Audit:
    """Checkpoints where they lie: their files, and of a folder their tensors too; the hub tells hashes, no numbers.

    Raises UserError where there is but one, or no step of `steps`.
    """
    revisions, words = source.revisions()
    if len(revisions) < 2:
        raise UserError(f"{source.name}: has one checkpoint: an audit compares those of several steps")
    chosen, missing = choose_steps(revisions, steps)
    at = {_step(revision): revision for revision in chosen}
    notes = list(words)
    listings = {}
    for i, (step, revision) in enumerate(at.items()):
        listings[step] = source.files(revision)
        _tell_now_and_then(tell, i + 1, len(at), "listed")
    findings, more, left_out = judge_files(listings)
    notes += more
    findings += [Finding(steps=(step,), kind="missing", said="no such revision") for step in missing]
    findings += [] if steps else judge_gaps(sorted(at))
    trajectory = None
    if source.is_local:
        trajectory = follow(_checkpoints(source, at, left_out, findings, tell))
        findings += [] if trajectory is None else judge(trajectory)
    else:
        notes.append("files alone: icl-jax import looks at the tensors too")
    return _audit(source.name, sorted(at), findings, notes, trajectory)


def _checkpoints(
    source: Source, at: dict[int, Revision], left_out: set[int], findings: list[Finding], tell: Tell
) -> Iterator[tuple[int, Tensors]]:
    for i, (step, revision) in enumerate(sorted(at.items())):
        if step in left_out:
            continue
        try:
            with source.fetch(revision) as fetched:
                checkpoint = open_checkpoint(fetched.path)
                tensors = checkpoint.tensors.items()
                arrays = {n: t.read().astype(np.float32) for n, t in tensors if t.dtype.name in _FLOATS}
                _ = checkpoint.files  # as their hashes say
                yield step, arrays
        except UserError as error:
            if not any(finding.kind == "missing" and step in finding.steps for finding in findings):
                findings.append(Finding(steps=(step,), kind="damaged", said=str(error)))
        _tell_now_and_then(tell, i + 1, len(at))


def _step(revision: Revision) -> int:
    return revision.step or 0


def _audit(
    name: str, steps: list[int], findings: list[Finding], notes: list[str], trajectory: Trajectory | None
) -> Audit:
    """With the findings in order, and nothing said twice of a step."""
    if trajectory is not None:
        for step, names in trajectory.unlike.items():
            findings.append(Finding(steps=(step,), kind="damaged", said=f"has other tensors than the rest: {names}"))
    kept = list(dict.fromkeys(findings))
    kept.sort(key=lambda finding: (finding.steps[:1], finding.kind))
    return Audit(name=name, steps=tuple(steps), findings=kept, notes=notes, trajectory=trajectory)


def _origin(run: RunDir) -> list[Finding]:
    """Steps that an import could not have, and where it took all that there are those that the series passes over."""
    if run.imported is None:
        return []
    missing = run.imported.get("missing", {})
    found = [Finding(steps=(int(step),), kind="missing", said=str(why)) for step, why in missing.items()]
    if run.imported.get("steps") != "":
        return found
    return found + judge_gaps(sorted({*(entry.step for entry in run.manifest.read()), *map(int, missing)}))


def _losses(run: RunDir, notes: list[str]) -> list[Finding]:
    """Of what analyze took last."""
    data = None
    if (run.path / "analysis.zarr").exists():
        with contextlib.suppress(UserError):  # icl-jax verify says what is wrong with it
            data = load_dataset(run.path / "analysis.zarr")
    if data is None or "loss_by_position" not in data:
        notes.append(f"losses were not looked at: icl-jax analyze {run.path} --only held_out_loss takes them")
        return []
    loss = data["loss_by_position"].values.mean(axis=1)
    return judge_loss(data["snapshot"].values, loss)


def _tell_now_and_then(tell: Tell, i: int, n: int, what: str = "compared") -> None:
    if i % 20 == 0 and i < n:
        tell(f"{i} of {n} checkpoints {what}")
