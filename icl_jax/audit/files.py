"""What the lists of files say, without a byte of the weights: equal ones, missing ones, stray ones."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Mapping

from icl_jax.audit.finding import Finding
from icl_jax.audit.judge import equal_checkpoints
from icl_jax.importing.checkpoint import is_weights

Listing = Mapping[str, str]
"""Names of files to hashes of what they hold; "" where it is not known."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
_NEEDED = ("config.json",)
_MOST = 0.9
"""Of the checkpoints: what so many have, the others lack; what so few have (1 - this) is stray."""
_FEW = 5


def judge_files(listings: Mapping[int, Listing]) -> tuple[list[Finding], list[str], set[int]]:
    """Findings, notes and the steps with the weights of others, of the files of each step."""
    weights = {step: {name: sha for name, sha in files.items() if is_weights(name)} for step, files in listings.items()}
    whole = {step: " ".join(sorted(files.values())) for step, files in weights.items() if files and all(files.values())}
    findings, notes, left_out = equal_checkpoints(whole)
    findings += _equal_shards(weights, left_out, {0, 1} if notes else set())
    for step, files in listings.items():
        findings += _one(step, files, weights[step])
    findings += _unlike_the_others(listings, weights)
    return findings, notes, left_out


def judge_gaps(steps: list[int]) -> list[Finding]:
    """Steps that a series passes over in the middle of even ones: 1000, 2000, 4000, 5000.

    Spans that differ by 1 are those of steps that are spaced by their logarithm and rounded: 14, 15, 17, 18.
    """
    spans = [later - earlier for earlier, later in itertools.pairwise(steps)]
    findings = []
    for i in range(2, len(spans) - 2):
        beside = {spans[j] for j in (i - 2, i - 1, i + 1, i + 2)}
        (span, *others) = beside
        if not others and spans[i] > span + 1 and spans[i] % span == 0:
            gone = tuple(range(steps[i] + span, steps[i + 1], span))
            said = f"not there, though every {span} steps before and after are"
            findings.append(Finding(steps=gone, kind="missing", said=said))
    return findings


def _equal_shards(weights: Mapping[int, Listing], left_out: set[int], may: set[int]) -> list[Finding]:
    """A file of one checkpoint in another whose other files are its own."""
    of: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for step, files in weights.items():
        for name, sha256 in files.items():
            if sha256 and step not in left_out and step not in may:
                of[sha256].append((step, name))
    findings = []
    for places in of.values():
        steps = tuple(sorted({step for step, _ in places}))
        if len(steps) > 1:
            said = f"{places[0][1]} is the same file in each, though their other weights differ"
            findings.append(Finding(steps=steps, kind="tensor out of line", said=said))
    return findings


def _one(step: int, files: Listing, weights: Listing) -> list[Finding]:
    missing = [name for name in _NEEDED if name not in files and not any(n.endswith((".gguf", ".pth")) for n in files)]
    sets: defaultdict[tuple[str, int, str], set[int]] = defaultdict(set)
    for name in weights:
        if match := _SHARD.fullmatch(name):
            stem, i, n, suffix = match.groups()
            sets[stem, int(n), suffix].add(int(i))
    is_whole = any(not _SHARD.fullmatch(name) for name in weights)
    lacking = {key: sorted(set(range(1, key[1] + 1)) - there) for key, there in sets.items()}
    is_whole |= any(not gone for gone in lacking.values())
    findings = []
    for (stem, n, suffix), gone in lacking.items():
        names = [f"{stem}-{i:05}-of-{n:05}{suffix}" for i in gone]
        if gone and not is_whole:
            missing += names
        elif gone:
            there = f"{len(sets[stem, n, suffix])} of {n} files {stem}-*-of-{n:05}{suffix}"
            said = f"{there} beside whole weights"
            findings.append(Finding(steps=(step,), kind="stray", said=said))
    if not weights:
        missing.append("weights")
    if missing:
        findings.append(Finding(steps=(step,), kind="missing", said=f"has no {', '.join(missing)}"))
    return findings


def _unlike_the_others(listings: Mapping[int, Listing], weights: Mapping[int, Listing]) -> list[Finding]:
    """Weights that nearly all others have, or nearly none. Of the shards of a set its number stands for all."""
    if len(listings) < _FEW:
        return []
    sets = {step: {_of_set(name) for name in files} for step, files in weights.items()}
    counts = Counter(name for names in sets.values() for name in names)
    findings = []
    for name, n in counts.items():
        n_all = len(listings)
        if _MOST * n_all <= n < n_all:
            lacking = tuple(step for step in listings if name not in sets[step] and weights[step])
            said = f"has no {name}, which {n} of the {n_all} checkpoints have"
            findings += [Finding(steps=lacking, kind="missing", said=said)] if lacking else []
        elif n_all - n >= _MOST * n_all:
            having = tuple(step for step in listings if name in sets[step])
            said = f"{name} is in {n} of the {n_all} checkpoints alone"
            findings.append(Finding(steps=having, kind="stray", said=said))
    return findings


def _of_set(name: str) -> str:
    match = _SHARD.fullmatch(name)
    return name if match is None else f"{match[1]}-*-of-{match[3]}{match[4]}"
