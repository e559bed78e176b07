"""The saved W&B workspace, as it would be sent."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from icl_jax.cli.workspace import layout
from icl_jax.rundir.record import ProbeResult
from icl_jax.train.watch.tracker import WandbTracker
from icl_jax.train.watch.wandb_run import Point, history_row
from tests.train.runs import command

# wandb-workspaces is written for an older pydantic.
pytestmark = [
    pytest.mark.usefixtures("wandb_of_nobody"),
    pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning"),
]


def sent_names() -> set[str]:
    """Names of the numbers that the tracker sends."""
    tracker = WandbTracker({}, pytest.fail)
    tracker.log_step(1, 10, dict.fromkeys(("loss", "lr", "grad_norm", "tokens_per_s"), 1.0))
    score_NH = np.ones((2, 3), np.float32)
    result = ProbeResult(
        step=1, icl_score=0.0, icl_windowed=0.0, icl_score_sem=0.1, icl_sem=0.1, held_out_loss=np.ones(3),
        prefix_matching=score_NH, previous_token=score_NH,
    )  # fmt: skip
    tracker.log_probe(10, result)
    points = [tracker._waiting.get() for _ in range(2)]
    return {name for point in points if isinstance(point, Point) for name in history_row(point)}


def panels(sent: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for section in sent["spec"]["section"]["panelBankConfig"]["sections"]:
        yield from section["panels"]


def test_the_workspace_shows_what_the_tracker_sends() -> None:
    sent = json.loads(layout("team", "phase", "mine")._to_model().model_dump_json(by_alias=True))
    assert (sent["entity"], sent["project"], sent["displayName"]) == ("team", "phase", "mine")
    names, shown = sent_names(), set()
    lines = [panel["config"] for panel in panels(sent) if panel["viewType"] == "Run History Line Plot"]
    for config in lines:
        assert config["xAxis"] == "tokens"
        found = set(config["metrics"]) or {n for n in names if re.fullmatch(config["metricRegex"], n)}
        assert found <= names, config["chartTitle"]
        assert found
        shown |= found
    assert names - shown == {"tokens", "step", "loss_by_position"}
    (curve,) = (panel["config"] for panel in panels(sent) if panel["viewType"] != "Run History Line Plot")
    assert curve["panelDefId"] == "wandb/line/v0"
    assert curve["fieldSettings"] == {"x": "position", "y": "loss_nats"}
    assert "loss_by_position_table" in json.dumps(curve["userQuery"])


def test_without_an_account_it_is_one_line() -> None:
    status, _, err = command("workspace", "repeats-2l")
    assert (status, err) == (2, "icl-jax: W&B is not logged in: run `wandb login` or set WANDB_API_KEY\n")


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)

    def no_answer(_self: object) -> None:
        raise ConnectionError("no answer\nat all")

    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", no_answer)
    monkeypatch.setenv("WANDB_BASE_URL", "http://tracker.invalid")
    status, out, err = command("workspace", "repeats-2l", "--tracker.entity", "team")
    assert (status, err) == (2, "icl-jax: W&B: no answer\n")
    assert out == "asks W&B at http://tracker.invalid, half a minute at most\n"
