"""docs/measures.md: a heading for every measurement, and every known value that it states, computed."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from icl_jax.measures.table import TABLE
from tests.known_values import causes, curves, heads, weights
from tests.known_values.model import Found


def _page() -> dict[str, str]:
    """The text of every measurement, by its heading."""
    page = (Path(__file__).parents[1] / "docs" / "measures.md").read_text(encoding="utf-8")
    parts = re.split(r"^### (.+)$", page, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _stated(text: str) -> dict[tuple[str, str], tuple[float, float]]:
    """(variable, of) -> value and how far from it the truth may be: the ± or half of the last digit."""
    stated = {}
    for variable, of, value in re.findall(r"^\| `(\w+)` \| (.+) \| (-?[\d.]+(?: ± [\d.]+)?) \|$", text, re.MULTILINE):
        number, _, tolerance = value.partition(" ± ")
        digits = len(number.partition(".")[2])
        stated[variable, of] = float(number), float(tolerance or 0.51 * 10.0**-digits)
    return stated


COMPUTED: dict[str, Callable[[], Found]] = {
    name: next(vars(part)[f"_{name}"] for part in (causes, curves, heads, weights) if f"_{name}" in vars(part))
    for name in (measurement.name for measurement in TABLE)
}


def test_every_measurement_has_its_heading_and_no_other_is_there() -> None:
    assert sorted(_page()) == sorted(COMPUTED)


@pytest.mark.parametrize("name", COMPUTED)
def test_known_values_are_computed(name: str) -> None:
    text = _page()[name].partition("\n## ")[0]
    stated, found = _stated(text), COMPUTED[name]()
    assert stated.keys() == found.keys()
    assert len(stated) == text.count("\n|") - 2  # a row that is not understood is not passed over
    for key, (value, tolerance) in stated.items():
        assert found[key] == pytest.approx(value, abs=tolerance, rel=0), key


def test_what_the_page_calls_variables_are_variables() -> None:
    known = {name for measurement in TABLE for name in measurement.variables}
    for name, text in _page().items():
        assert {variable for variable, _ in _stated(text)} <= known, name
