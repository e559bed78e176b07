"""The section [members]: how seeds are written, and what a member's config is."""

import pytest

from icl_jax.config import Config, UserError, dump_config, experiment, numeric_differences, parse_config


@pytest.mark.parametrize(
    ("written", "seeds"),
    [
        ("3", (0, 1, 2)), ('"3"', (0, 1, 2)), ('"0..2"', (0, 1, 2)), ('" 0 .. 2 "', (0, 1, 2)), ("[0, 1]", (0, 1)),
        ("[5]", (5,)), ('"5..5"', (5,)), ('"3,0,8"', (3, 0, 8)), ('""', ()),
    ],
)  # fmt: skip
def test_ways_to_write_seeds(written: str, seeds: tuple[int, ...]) -> None:
    config = parse_config(f"[members]\nseeds = {written}")
    assert config.members.train_seeds == seeds
    assert len(config.members) == len(seeds)
    assert parse_config(dump_config(config)) == config


def test_equal_seeds_are_equal_however_written() -> None:
    same = {parse_config(f"[members]\nseeds = {text}").members.seeds for text in ("3", '"0..2"', "[0, 1, 2]")}
    assert same == {"0..2"}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("0", "members.seeds = '0': must be 1 member or more"),
        ("[]", "must be 1 member or more"),
        ('"4..3"', "members.seeds = '4..3': must be 1 member or more"),
        ("[1, 1]", "of different seeds"),
        ("-1", "must be how many"),
        ("1.5", "members.seeds = 1.5: must be how many"),
        ("true", "members.seeds = True: must be how many"),
        ('"0..2,5"', "must be how many"),
        ('"4294967295..4294967296"', "each must be from 0 to 2"),
        ("70000", "must be at most 65536 members"),
        ('"0..9999999999999999999"', "must be at most 65536 members"),
    ],
)
def test_bad_seeds(written: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(f"[members]\nseeds = {written}")
    assert said in str(caught.value)


def test_fsdp() -> None:
    with pytest.raises(UserError, match=r"train.fsdp = 2: must be 1 with members"):
        parse_config('[members]\nseeds = 2\n[train]\nparallel = "mesh"\nfsdp = 2')


def test_a_member_is_a_plain_config() -> None:
    plain, many = parse_config("[train]\nseed = 8"), parse_config("[members]\nseeds = [4, 8]\n[train]\nseed = 1")
    assert many.member(1) == plain
    assert dump_config(many.member(1)) == dump_config(plain)
    assert "members" not in dump_config(plain)
    assert many == parse_config("[members]\nseeds = [4, 8]")  # train.seed is of the members
    assert experiment(many) == experiment(plain) == Config()
    assert numeric_differences(many, plain)
    for index in (-1, 2):
        with pytest.raises(UserError, match=r"must be from 0 to 1"):
            many.member(index)
    with pytest.raises(UserError, match=r"the run has no members"):
        plain.member(0)
