"""Mistakes in a config: one line that names the file, the field, the value and what is allowed."""

from pathlib import Path

import pytest

from icl_jax.config import DataConfig, UserError, load_config, parse_config
from icl_jax.data.corpora.mixture import KINDS

MIXTURE = '[data]\nsource = "mixture"\n[data.mixture]\n'

# TOML text; then what the message must hold.
BAD = {
    "unknown section": ("[modle]\nn_layers = 2", ["'modle'", "did you mean 'model'?", "optimizer"]),
    "unknown key": ("[model]\nn_layer = 2", ["'model.n_layer'", "did you mean 'n_layers'?", "d_model"]),
    "unknown key, nothing like it": ("[train]\nzzz = 2", ["'train.zzz'", "known are n_steps, batch_size"]),
    "key outside a section": ("n_layers = 2", ["'n_layers'", "known are model, data"]),
    "value for a section": ("model = 2", ["model = 2", "must be a table, [model]"]),
    "list of sections": ("[[model]]\nn_layers = 2", ["model = [{'n_layers': 2}]", "must be a table, [model]"]),
    "text for a number": ('[model]\nn_layers = "2"', ["model.n_layers = '2'", "must be a whole number"]),
    "fraction for a whole number": ("[train]\nn_steps = 1e3", ["train.n_steps = 1000.0", "must be a whole number"]),
    "bool for a number": ("[model]\nn_heads = true", ["model.n_heads = True", "must be a whole number"]),
    "bool for a rate": ("[optimizer]\nlr = true", ["optimizer.lr = True", "must be a finite number"]),
    "offset wider than a head": ("[model]\nkey_offset = 17", ["model.key_offset = 17", "width of a head, 16"]),
    "negative offset": ("[model]\nkey_offset = -1", ["model.key_offset = -1", "0 or more"]),
    "number for a bool": ("[model]\nsmeared_keys = 1", ["model.smeared_keys = 1", "must be true or false"]),
    "text for a bool": ('[model]\nsmeared_keys = "yes"', ["model.smeared_keys = 'yes'", "must be true or false"]),
    "number for text": (
        '[data]\nsource = "tfds:a"\n[data.tfds]\nsplit = 3',
        ["data.tfds.split = 3", "must be a string"],
    ),
    "list for a number": ("[model]\nn_layers = [1, 2]", ["model.n_layers = [1, 2]", "must be a whole number"]),
    "table for a number": ("[model.n_layers]\na = 1", ["model.n_layers = {'a': 1}", "must be a whole number"]),
    "date for a number": (
        "[model]\nn_layers = 2024-01-02",
        ["n_layers = datetime.date", "must be a whole number"],
    ),
    "more than 64 bits": (
        f"[data]\nseed = {2**64}",
        [f"data.seed = {2**64}", "whole number of at most 64 bits"],
    ),
    "whole number beyond floats": (f"[optimizer]\nlr = {10**400}", ["optimizer.lr = 1000", "must be a finite number"]),
    "nan": ("[optimizer]\nlr = nan", ["optimizer.lr = nan", "must be a finite number"]),
    "infinity": ("[optimizer]\nclip_norm = inf", ["optimizer.clip_norm = inf", "must be a finite number"]),
    "lr 0": ("[optimizer]\nlr = 0", ["optimizer.lr = 0.0", "must be greater than 0"]),
    "lr negative": ("[optimizer]\nlr = -1e-3", ["optimizer.lr = -0.001", "must be greater than 0"]),
    "weight decay negative": (
        "[optimizer]\nweight_decay = -0.1",
        ["weight_decay = -0.1", "must be 0 or more"],
    ),
    "b2 of 1": ("[optimizer]\nb2 = 1.0", ["optimizer.b2 = 1.0", "must be in [0, 1)"]),
    "eps 0": ("[optimizer]\neps = 0.0", ["optimizer.eps = 0.0", "must be greater than 0"]),
    "an optimiser of another name": ('[optimizer]\nname = "adam"', ["optimizer.name = 'adam'", "'adamw'", "'muon'"]),
    "muon over shards": (
        '[train]\nparallel = "mesh"\nfsdp = 2\n[optimizer]\nname = "muon"',
        ["train.fsdp = 2", "must be 1 with optimizer.name = 'muon'"],
    ),
    "a schedule of negative length": ("[optimizer]\nschedule_steps = -1", ["schedule_steps = -1", "must be 0 or more"]),
    "final lr above peak": ("[optimizer]\nfinal_lr_fraction = 2", ["final_lr_fraction = 2.0", "must be in [0, 1]"]),
    "decay change below -1": ("[optimizer]\ndecay_change_step = -2", ["decay_change_step = -2", "must be -1 or more"]),
    "warm-up longer than the run": (
        "[train]\nn_steps = 50\n[optimizer]\nwarmup_steps = 51",
        ["optimizer.warmup_steps = 51", "must be at most train.n_steps = 50"],
    ),
    "no slice": ('[launch]\ntopology = "v5e"', ["launch.topology = 'v5e'", "must be a TPU slice such as 'v5e:4x4'"]),
    "a slice with a side too many": ('[launch]\ntopology = "v6e:4x4x4"', ["launch.topology = 'v6e:4x4x4'"]),
    "a slice with a side too few": ('[launch]\ntopology = "v5p:4x4"', ["launch.topology = 'v5p:4x4'"]),
    "a slice with an empty side": ('[launch]\ntopology = "v5e:0x4"', ["launch.topology = 'v5e:0x4'"]),
    "a slice of an unknown chip": ('[launch]\ntopology = "h100:2x2"', ["launch.topology = 'h100:2x2'"]),
    "layers negative": ("[model]\nn_layers = -1", ["model.n_layers = -1", "must be 0 or more"]),
    "no heads": ("[model]\nn_heads = 0", ["model.n_heads = 0", "must be 1 or more"]),
    "no width": ("[model]\nd_model = 0", ["model.d_model = 0", "must be 1 or more"]),
    "width not divisible": ("[model]\nd_model = 65", ["model.d_model = 65", "must be divisible by model.n_heads = 4"]),
    "width odd": (
        "[model]\nd_model = 63\nn_heads = 3",
        ["model.d_model = 63", "must be even with sinusoidal"],
    ),
    "head odd with rotary": (
        '[model]\nd_model = 60\nn_heads = 4\npositions = "rotary"',
        ["model.d_model // model.n_heads = 15", "must be even with model.positions = 'rotary'"],
    ),
    "no context": ("[model]\nn_ctx = 0", ["model.n_ctx = 0", "must be 1 or more"]),
    "context of one": ("[model]\nn_ctx = 1", ["model.n_ctx = 1", "must be 2 or more"]),
    "no vocabulary": ("[model]\nvocab_size = 0", ["model.vocab_size = 0", "must be 1 or more"]),
    "MLP negative": ("[model]\nd_mlp = -1", ["model.d_mlp = -1", "must be 0 (attention-only) or more"]),
    "init 0": ("[model]\ninit_std = 0.0", ["model.init_std = 0.0", "must be greater than 0"]),
    "unknown positions": (
        '[model]\npositions = "relative"',
        ["model.positions = 'relative'", "'shortformer', 'rotary', 'standard', 'alibi'"],
    ),
    "positions not text": ("[model]\npositions = 1", ["model.positions = 1", "'shortformer', 'rotary', 'standard'"]),
    "unknown dtype": ('[model]\ncompute_dtype = "fp8"', ["compute_dtype = 'fp8'", "'float32', 'bfloat16'"]),
    "unknown schedule": ('[optimizer]\nschedule = "linear"', ["schedule = 'linear'", "'cosine', 'constant'"]),
    "unknown source": ('[data]\nsource = "wikipedia"', ["data.source = 'wikipedia'", "'tfds:NAME[/CONFIG][:VERSION]'"]),
    "source without its path": ('[data]\nsource = "text:"', ["data.source = 'text:'", "'text:PATH-OR-GLOB'"]),
    "no tokenizer": ('[data]\ntokenizer = ""', ["data.tokenizer = ''", "must not be empty"]),
    "nothing held out": ("[data]\nheld_out_rows = 0", ["data.held_out_rows = 0", "must be 1 or more"]),
    "seed negative": ("[data]\nseed = -1", ["data.seed = -1", "must be from 0 to 2**63 - 1"]),
    "phrase of one": ("[data.repeats]\nphrase_len = 1", ["data.repeats.phrase_len = 1", "must be 2 or more"]),
    "phrase longer than a row": (
        "[model]\nn_ctx = 8\n[data.repeats]\nphrase_len = 8",
        ["data.repeats.phrase_len = 8", "must be less than model.n_ctx = 8"],
    ),
    "vocabulary small for repeats": (
        "[model]\nvocab_size = 3",
        ["vocab_size = 3", "must be 4 or more for repeats"],
    ),
    "phrases never": ("[data.repeats]\nphrase_prob = 0", ["data.repeats.phrase_prob = 0.0", "must be in (0, 1]"]),
    "chain of no order": ("[data]\nchain_order = 0", ["data.markov.order = 0", "must be 1 or more"]),
    "unknown prior": ('[data]\nchain_prior = "beta"', ["prior = 'beta'", "'dirichlet', 'doubly_stochastic'"]),
    "doubly stochastic of order 2": (
        '[data]\nchain_order = 2\nchain_prior = "doubly_stochastic"',
        ["data.markov.order = 2", "must be 1 with data.markov.prior = 'doubly_stochastic'"],
    ),
    "chain of one state": (
        '[model]\nvocab_size = 2\n[data]\nsource = "markov"',
        ["model.vocab_size = 2", "must be 3 or more for markov"],
    ),
    "chain of too many states": (
        '[model]\nvocab_size = 18\n[data]\nsource = "markov"\nchain_order = 2',
        ["model.vocab_size = 18", "17 ** (data.markov.order + 1) chances are more than 4096"],
    ),
    "chain longer than a row": (
        '[model]\nvocab_size = 3\nn_ctx = 5\n[data]\nsource = "markov"\nchain_order = 4',
        ["data.markov.order = 4", "must be at most model.n_ctx - 2 = 3"],
    ),
    "no triggers": ("[data]\nn_triggers = 0", ["data.triggers.n_triggers = 0", "must be from 1 to 60"]),
    "all characters triggers": ("[data]\nn_triggers = 61", ["data.triggers.n_triggers = 61", "must be from 1 to 60"]),
    "shares below 0": (MIXTURE + "rules = -1", ["data.mixture.rules = -1.0", "must be 0 or more"]),
    "no kind of rows": (
        MIXTURE + "\n".join(f"{kind} = 0" for kind in KINDS),
        ["data.mixture.sums = 0.0", "one of sums, rules,", "must be more than 0"],
    ),
    "numbers too long": (MIXTURE + "digits = 4", ["data.mixture.digits = 4", "must be from 1 to 3"]),
    "numbers as words": (MIXTURE + "numbers = 'words'", ["data.mixture.numbers", "'digits', 'tokens'"]),
    "always again": (MIXTURE + "again = 1", ["data.mixture.again = 1.0", "less than 1"]),
    "odd words": (MIXTURE + "words = 10", ["data.mixture.words = 10", "a multiple of 4 from 4 to 400"]),
    "no sentences": (MIXTURE + "sentences = 0", ["data.mixture.sentences = 0", "from 1 to 100"]),
    "large dictionary": (MIXTURE + "entries = 7", ["data.mixture.entries = 7", "from 1 to 6"]),
    "large classes": (MIXTURE + "class_words = 13", ["data.mixture.class_words = 13", "from 2 to 12"]),
    "no classes": ("[data]\nn_classes = 0", ["data.classes.n_classes = 0", "must be 1 or more"]),
    "no labels": ("[data]\nn_labels = 0", ["data.classes.n_labels = 0", "must be 1 or more"]),
    "no bursts": ("[data]\nburstiness = 0", ["data.classes.burstiness = 0", "must be 1 or more"]),
    "too bursty": ("[data]\nbursty = 1.5", ["data.classes.bursty = 1.5", "must be from 0 to 1"]),
    "unknown choice": ('[data]\ntrigger_choice = "all"', ["choice = 'all'", "'fixed', 'random'"]),
    "options of another corpus": (
        "[data.markov]\norder = 2",
        ["data.markov: only with data.source = 'markov', and it is 'repeats'"],
    ),
    "unknown option": (
        "[data.repeats]\nphrase_length = 3",
        ["'data.repeats.phrase_length'", "did you mean 'phrase_len'?"],
    ),
    "option of a corpus without any": (
        '[data]\nsource = "stories"\n[data.stories]\na = 1',
        ["data.stories", "no options"],
    ),
    "value for options": ("[data]\nrepeats = 3", ["data.repeats = 3", "must be a table, [data.repeats]"]),
    "options by their field": ("[data.options]\norder = 3", ["unknown key 'data.options'", "its table"]),
    "source not text": ("[data]\nsource = 3", ["data.source = 3", "'repeats'"]),
    "more than the name": ('[data]\nsource = "markov:3"', ["data.source = 'markov:3'", "'markov'"]),
    "no steps": ("[train]\nn_steps = 0", ["train.n_steps = 0", "must be 1 or more"]),
    "too many steps": (f"[train]\nn_steps = {2**31}", [f"train.n_steps = {2**31}", "must be less than 2**31"]),
    "loss of no position": (
        "[train]\nloss_from = 128",
        ["train.loss_from = 128", "must be less than model.n_ctx = 128"],
    ),
    "loss from before a row": ("[train]\nloss_from = -1", ["train.loss_from = -1", "must be 0 or more"]),
    "empty batch": ("[train]\nbatch_size = 0", ["train.batch_size = 0", "must be 1 or more"]),
    "batch not divisible": (
        "[train]\nbatch_size = 32\naccum_steps = 3",
        ["train.batch_size = 32", "must be divisible by train.accum_steps = 3"],
    ),
    "seed of 33 bits": (
        f"[train]\nseed = {2**32}",
        [f"train.seed = {2**32}", "must be from 0 to 2**32 - 1"],
    ),
    "fsdp without a mesh": ("[train]\nfsdp = 2", ["train.fsdp = 2", "must be 1 unless train.parallel = 'mesh'"]),
    "flush negative": ("[train]\nflush_every_s = -1", ["train.flush_every_s = -1.0", "must be 0 or more"]),
    "snapshots negative": ("[snapshots]\nn_log = -1", ["snapshots.n_log = -1", "must be 0 or more"]),
    "no state kept": ("[snapshots]\nkeep_states = 0", ["snapshots.keep_states = 0", "must be 1 or more"]),
    "state every 0 s": ("[snapshots]\nstate_every_s = 0", ["state_every_s = 0.0", "must be greater than 0"]),
    "probes negative": ("[probes]\nn_probes = -1", ["probes.n_probes = -1", "must be 0 or more"]),
    "no repeat": ("[probes]\nn_repeats = 1", ["probes.n_repeats = 1", "must be 2 or more"]),
    "more probed than held out": (
        "[data]\nheld_out_rows = 8\n[probes]\nheld_out_rows = 9",
        ["probes.held_out_rows = 9", "must be at most data.held_out_rows = 8"],
    ),
    "unknown W&B mode": (
        '[tracker]\nwandb = "on"',
        ["wandb = 'on'", "'auto', 'online', 'offline', 'disabled'"],
    ),
    "no project": ('[tracker]\nproject = ""', ["tracker.project = ''", "must not be empty"]),
    "a project that W&B refuses": (
        '[tracker]\nproject = "me/icl"',
        ["tracker.project = 'me/icl'", "must hold none of / \\ # ? % : (W&B)"],
    ),
    "an entity that W&B refuses": ('[tracker]\nentity = "a:b"', ["tracker.entity = 'a:b'", "must hold none of /"]),
    "a project of a hundred words": (
        f'[tracker]\nproject = "{"p" * 129}"',
        ["tracker.project", "must have at most 128 characters"],
    ),
    "never tracked": ("[tracker]\nevery_steps = 0", ["tracker.every_steps = 0", "must be 1 or more"]),
    "line end in a value": ('[data]\nsource = "a\\nb"', ["data.source = 'a\\nb'", "must be 'repeats'"]),
    "line end in a key": ('[data]\n"a\\nb" = 1', ["'data.a\\nb'", "known are source"]),
    **{
        f"intervention, {case}": (f"[[intervene]]\n{text}", expected)
        for case, (text, expected) in {
            "no list": ("", ["intervene.0.what = None", "must be one of 'zero', 'mean'"]),
            "no tap": ('at = "patern"\nwhat = "zero"', ["intervene.0.at = 'patern'", "did you mean 'pattern'?", "W_Q"]),
            "nowhere": ('what = "zero"', ["intervene.0.at = None", "is missing"]),
            "a list of taps": ('at = ["q"]\nwhat = "zero"', ["intervene.0.at = ['q']", "must be the name of"]),
            "no kind": ('at = "q"\nwhat = "zro"', ["intervene.0.what = 'zro'", "must be one of 'zero'"]),
            "two kinds": ('at = "q"\nscale = 1\nnoise = 2', ["intervene.0.what = 'scale, noise'", "one key"]),
            "no key": ('at = "q"\nwhat = "zero"\nfrm = 3', ["'intervene.0.frm'", "did you mean 'from'?"]),
            "no number": ('at = "q"\nwhat = "scale"', ["intervene.0: what = 'scale' needs scale"]),
            "text for a number": ('at = "q"\nscale = "x"', ["intervene.0.scale = 'x'", "must be a finite number"]),
            "no layer": ('at = "q"\nwhat = "zero"\nlayers = 2', ["intervene.0.layers = (2,)", "n_layers - 1 = 1"]),
            "no head": ('at = "q"\nwhat = "zero"\nheads = [0, 4]', ["intervene.0.heads = (0, 4)", "from 0 to 3"]),
            "text for a head": ('at = "q"\nwhat = "zero"\nheads = "all"', ["intervene.0.heads = 'all'", "or 'formed'"]),
            "heads twice": (
                'at = "q"\nwhat = "zero"\nheads = 1\nexcept_heads = 2',
                ["except_heads = (2,): not with heads"],
            ),
            "heads of a stream": (
                'at = "resid_pre"\nwhat = "zero"\nheads = 1',
                ["heads = (1,): resid_pre has no heads"],
            ),
            "layers of no layer": ('at = "W_U"\nwhat = "zero"\nlayers = 0', ["layers = (0,): W_U has no layers"]),
            "without an MLP": (
                'at = "mlp_out"\nwhat = "zero"',
                ["intervene.0.at = 'mlp_out'", "only with model.d_mlp > 0"],
            ),
            "a pattern elsewhere": ('at = "q"\npattern = "previous"', ["intervene.0.at = 'q'", "must be of pattern"]),
            "no pattern": (
                'at = "pattern"\npattern = "prev"',
                ["pattern = 'prev'", "must be one of 'previous', 'induction'"],
            ),
            "a temperature of 0": (
                'at = "attn_scores"\ntemperature = 0',
                ["intervene.0.temperature = 0.0", "greater than 0"],
            ),
            "an empty time": (
                'at = "q"\nwhat = "zero"\nfrom = 3\nuntil = 3',
                ["intervene.0.until = 3", "more than from = 3"],
            ),
            "a time in words": (
                'at = "q"\nwhat = "zero"\nfrom = "soon"',
                ["from = 'soon'", "or 'first_induction_head'"],
            ),
            "heads that never form": (
                'at = "z"\nwhat = "zero"\nheads = "formed"',
                ["only with from = 'first_induction_head'"],
            ),
            "nobody looks": (
                'at = "z"\nwhat = "zero"\nfrom = "first_induction_head"\n[probes]\nn_probes = 0',
                ["needs probes.n_probes > 0"],
            ),
            "undone": (
                'at = "q"\nwhat = "mean"\nheads = 1\n[[intervene]]\nat = "q"\nwhat = "zero"',
                ["intervene.1.at = 'q'", "undoes it"],
            ),
            "sharded": (
                'at = "W_Q"\nwhat = "freeze"\n[train]\nparallel = "mesh"\nfsdp = 2',
                ["train.fsdp = 2: must be 1 with"],
            ),
            "half the batch": (
                'at = "z"\nwhat = "mean"\n[train]\naccum_steps = 2',
                ["train.accum_steps = 2", "reads the whole batch"],
            ),
            "a member's head": (
                'at = "z"\nwhat = "zero"\n[members]\n"intervene.0.heads" = [3, 4]',
                ["intervene.0.heads = (4,)"],
            ),
            "a member's kind": (
                'at = "z"\nwhat = "zero"\n[members]\n"intervene.0.scale" = [3, 4]',
                ["'intervene.N.scale'", "known are layers"],
            ),
            "a member of none": (
                'at = "z"\nwhat = "zero"\n[members]\n"intervene.1.heads" = [0, 1]',
                ["members.intervene.1.heads = 0", "there are 1"],
            ),
            "half a head": (
                'at = "z"\nwhat = "zero"\n[members]\n"intervene.0.heads" = [0.5, 1]',
                ["intervene.0.heads", "must be whole numbers"],
            ),
        }.items()
    },
    "a table of interventions": ("[intervene]\nat = 1", ["intervene = {'at': 1}", "must be a list of tables"]),
    "not TOML": ("[model\nn_layers = 2", ["not valid TOML", "line 1"]),
    "Python, not TOML": ("[model]\nsmeared_keys = True", ["not valid TOML", "line 2"]),
    "key twice": ("[model]\nn_layers = 2\nn_layers = 3", ["not valid TOML", "overwrite"]),
    "number of 5,000 digits": ("[data]\nseed = " + "9" * 5000, ["not valid TOML", "digits"]),
    "nested without end": ("a = " + "[" * 100_000, ["not valid TOML"]),
}


def message_of(error: UserError) -> str:
    message = str(error)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("case", BAD)
def test_message_names_file_field_value_and_what_is_allowed(case: str) -> None:
    text, expected = BAD[case]
    with pytest.raises(UserError) as caught:
        parse_config(text, "here.toml")
    message = message_of(caught.value)
    assert message.startswith("here.toml: ")
    for part in expected:
        assert part in message


def test_text_that_no_file_can_hold() -> None:
    with pytest.raises(UserError) as caught:
        DataConfig(source="text:caf\udce9")
    assert "must be a string of valid Unicode" in message_of(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "none.toml")
    assert message_of(caught.value) == f"{tmp_path}/none.toml: cannot read the config: No such file or directory"


def test_folder_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config(tmp_path)
    assert message_of(caught.value) == f"{tmp_path}: cannot read the config: Is a directory"


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\x80\x00\xff")
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert message_of(caught.value) == f"{path}: not a UTF-8 text file; a config is a TOML file"


def test_a_byte_order_mark_is_no_statement(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[model]\nn_layers = 1\n", encoding="utf-8-sig")
    assert load_config(tmp_path / "c.toml").model.n_layers == 1
