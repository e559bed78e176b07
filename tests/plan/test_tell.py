"""A plan in words."""

from icl_jax.plan.tell import short


def test_short_numbers() -> None:
    assert [short(n, "B") for n in (1.234e19, 9.5e12, 41152, 12)] == ["12.3 EB", "9.5 TB", "41.2 kB", "12 B"]
    assert short(3) == "3"
