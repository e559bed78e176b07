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
    assert config.member_fields.get("train.seed", ()) == seeds
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


@pytest.mark.parametrize(
    "written",
    [
        'seeds = 2\n"optimizer.lr" = [1e-3, 3e-3]',
        '"train.seed" = "0..1"\noptimizer.lr = [0.001, 0.003]',
        'seeds = "0,1"\nvalues = "optimizer.lr=1e-3,3e-3"',
        "seeds = [0, 1]\n[members.optimizer]\nlr = [0.001, 0.003]",
    ],
)
def test_ways_to_write_a_grid(written: str) -> None:
    config = parse_config(f"[members]\n{written}\n[optimizer]\nb1 = 0.5\nlr = 1.0")
    rates = [(config.member(k).optimizer.lr, config.member(k).train.seed) for k in range(4)]
    assert rates == [(1e-3, 0), (1e-3, 1), (3e-3, 0), (3e-3, 1)]
    assert config.member_fields == {"train.seed": (0, 1, 0, 1), "optimizer.lr": (1e-3, 1e-3, 3e-3, 3e-3)}
    assert config == parse_config('[members]\nseeds = 2\nvalues = "optimizer.lr=0.001,0.003"\n[optimizer]\nb1 = 0.5')
    assert parse_config(dump_config(config)) == config
    alone = parse_config("[optimizer]\nb1 = 0.5\nlr = 3e-3\n[train]\nseed = 1")
    assert config.member(3) == alone


def test_a_paired_set() -> None:
    text = (
        '[members]\nseeds = "3..5"\ncombine = "paired"\n"optimizer.lr" = [1, 1, 2]\n"optimizer.warmup_steps" = "0..2"'
    )
    config = parse_config(text)
    assert len(config.members) == 3
    own = [(one.train.seed, one.optimizer.lr, one.optimizer.warmup_steps) for one in map(config.member, range(3))]
    assert own == [(3, 1.0, 0), (4, 1.0, 1), (5, 2.0, 2)]


def test_rows_of_members() -> None:
    shared = parse_config("[members]\nseeds = 2\n[data]\nseed = 7")
    assert (shared.row_seeds, shared.rows_of_members) == ((7,), (0, 0))
    own = parse_config('[members]\nseeds = 2\n"data.seed" = [5, 3]')
    assert (own.row_seeds, own.rows_of_members) == ((5, 3), (0, 0, 1, 1))
    assert [own.member(k).data.seed for k in range(4)] == [5, 5, 3, 3]
    assert parse_config("[data]\nseed = 7").row_seeds == (7,)


def test_values_alone_keep_the_seed_of_the_config() -> None:
    config = parse_config('[members]\n"model.init_std" = [0.01, 0.02]\n[train]\nseed = 7')
    assert config.member_fields == {"train.seed": (7, 7), "model.init_std": (0.01, 0.02)}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('"optimizer.lr" = []', "members.optimizer.lr = '': must be 1 value or more"),
        ('"optimizer.lr" = "fast"', "members.optimizer.lr = 'fast': must be a list of numbers"),
        ('"optimizer.lr" = [0.1, 0.1]', "must make members that differ"),
        ('"optimizer.lr" = [0.1, -1.0]', "optimizer.lr = -1.0: must be greater than 0"),
        ('"optimizer.b1" = [0.5, 1.0]', "optimizer.b1 = 1.0: must be in [0, 1)"),
        ('"optimizer.warmup_steps" = [0, 9999]', "optimizer.warmup_steps = 9999: must be at most train.n_steps"),
        ('"optimizer.warmup_steps" = [0.5]', "optimizer.warmup_steps = 0.5: must be a whole number"),
        ('"optimizer.warmup_steps" = "4..3"', "must be 1 value or more"),
        ('"model.d_model" = [16, 32]', "members: 'model.d_model': must change no shape: train.seed, optimizer.lr"),
        ("lr = [0.1]", "members: 'lr': must change no shape"),
        ('"data.seed" = [0, 0.5]', "data.seed = 0.5: must be a whole number"),
        ('"data.seed" = [0, -1]', "data.seed = -1: must be from 0 to 2**63 - 1"),
        ('"data.seed" = [9223372036854775808]', "data.seed = 9223372036854775808: must be a whole number"),
        ('"optimizer.name" = ["sgd", "muon"]', "members: 'optimizer.name': must change no shape"),
        ('seeds = 2\n"train.seed" = 3', "members.seeds says the same"),
        ('values = "optimizer.lr=1;optimizer.lr=2"', "is there twice"),
        (
            'combine = "paired"\nseeds = 3\n"optimizer.lr" = [1, 2]',
            "members.combine = 'paired': optimizer.lr has 2, train.seed has 3: must be equally many",
        ),
        ('seeds = 30000\n"optimizer.lr" = [1, 2, 3]', "must be at most 65536 members"),
    ],
)
def test_bad_values(written: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(f"[members]\n{written}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
