"""Slices and how long their links take, against counts made by hand."""

import itertools

import pytest

from icl_jax.config.tpus import TPUS
from icl_jax.plan.chips import Slice
from icl_jax.plan.hlo import Collective

GB = 10**9


def _seconds(slice_name: str, kind: str, group: tuple[int, ...] = ()) -> float:
    """Of 1 GB, over devices in the order of their coordinates; all of them by default."""
    tpu = Slice(slice_name)
    coordinates = [(*at, 0)[:3] for at in itertools.product(*map(range, tpu.sides))]
    return tpu.collective_s(Collective(kind, GB, group or tuple(range(tpu.n_chips)), 1), coordinates)


def test_shapes() -> None:
    assert Slice("v5e:4x8").n_chips == 32
    assert Slice("v5p:4x4x8").sides == (4, 4, 8)
    assert [Slice("v5e:8x16").is_ring(axis) for axis in (0, 1)] == [False, True]
    assert Slice("v5p:4x4x8").is_ring(0)
    assert not Slice("v5p:2x4x4").is_ring(1)


def test_published_figures_of_a_pod() -> None:
    """Google gives the all-reduce bandwidth of whole pods: chips x links x bytes a link, in one direction."""
    for name, chips, tb_per_s in (("v5e", 256, 51.2), ("v6e", 256, 102.4), ("v4", 4096, 1100)):
        chip = TPUS[name]
        assert chips * 2 * chip.n_axes * chip.link_gb_per_s / 1000 == pytest.approx(tb_per_s, rel=0.15)


def test_gather_on_open_lines() -> None:
    # 15/16 of a GB into a corner of a 4 x 4 grid, through its two links of 50 GB/s.
    assert _seconds("v5e:4x4", "all-gather") == pytest.approx(15 / 16 / 100)
    assert _seconds("v5e:4x4", "reduce-scatter") == _seconds("v5e:4x4", "all-gather")
    assert _seconds("v5e:4x4", "all-reduce") == pytest.approx(2 * 15 / 16 / 100)


def test_gather_on_rings() -> None:
    assert _seconds("v5e:16x16", "all-gather") == pytest.approx(255 / 256 / 200)
    assert _seconds("v5p:4x4x4", "all-gather") == pytest.approx(63 / 64 / 600)


def test_groups_use_the_links_of_their_own_sides() -> None:
    # A row of v5e:8x16 is a ring of 16 chips; a column an open line of 8.
    assert _seconds("v5e:8x16", "all-gather", tuple(range(16))) == pytest.approx(15 / 16 / 100)
    assert _seconds("v5e:8x16", "all-gather", tuple(range(0, 128, 16))) == pytest.approx(7 / 8 / 50)
    # Two opposite corners of a 4 x 4 grid: eight such pairs share its links.
    assert _seconds("v5e:4x4", "all-gather", (0, 15)) == pytest.approx(8 * (1 / 2 / 100))


def test_alone_there_is_nothing_to_send() -> None:
    assert _seconds("v5e:4x4", "all-reduce", (3,)) == 0
