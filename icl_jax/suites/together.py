"""Runs that differ in nothing that changes a shape, as the members of one run."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from icl_jax.config import SEEDS, Config, MembersConfig
from icl_jax.config.members import VARIED
from icl_jax.config.tables import flat


def together(runs: Mapping[str, Config]) -> dict[str, tuple[Config, list[str]]]:
    """The runs to train by the names of their folders, and the names of those that are its members, in their order.

    A run that none is like stays what it is, the one of its name.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, config in runs.items():
        same = (f"{field}={value!r}" for field, value in flat(config).items() if field not in (SEEDS, *VARIED))
        alike.setdefault(tuple(same), []).append(name)
    found = {}
    for names in alike.values():
        first = runs[names[0]]
        if len(names) == 1:
            found[names[0]] = (first, names)
            continue
        fields = {field: [flat(runs[name])[field] for name in names] for field in (SEEDS, *VARIED)}
        own = {field: values for field, values in fields.items() if len(set(values)) > 1}
        seeds = ",".join(map(str, own.pop(SEEDS, ())))
        values = "; ".join(f"{field}={','.join(map(repr, values))}" for field, values in own.items())
        members = MembersConfig(seeds=seeds, values=values, combine="paired")
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
        found[f"{len(names)}-members-{digest}"] = (replace(first, members=members), names)
    return found
