"""Commands that fork from one process: each has its own status, and a signal reaches the one that runs."""

import signal
from pathlib import Path

from icl_jax.suites.nursery import Nursery
from tests.train.runs import TINY


def test_one_process_runs_commands_after_each_other_and_passes_a_signal_on(tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY.replace("n_steps = 8", "n_steps = 1000000").replace("n_linear = 8", "n_linear = 0"))
    nursery = Nursery(None, {})
    assert list(nursery.run(["verify", "nope"])) == ["icl-jax: nope: no such run directory\n"]
    assert nursery.status == 2
    said = []
    for line in nursery.run(["train", str(config), "--run", str(tmp_path / "run")]):
        said.append(line)
        if sum(each.startswith("step ") for each in said) == 1 and line.startswith("step "):  # a second one interrupts
            nursery.send_signal(signal.SIGINT)
    assert "SIGINT: state saved at step" in said[-1]
    assert nursery.status == 130
    assert not nursery.has_ended
    (version,) = nursery.run(["--version"])
    assert version.startswith("icl-jax ")
    assert nursery.status == 0
    nursery.send_signal(signal.SIGTERM)
    assert list(nursery.run(["--version"])) == []
    assert nursery.status == 128 + signal.SIGTERM
    nursery.close()
