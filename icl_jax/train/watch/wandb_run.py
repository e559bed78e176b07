"""What the tracker does with W&B, all of it in the tracker's thread and free to raise."""

import contextlib
import sys
from typing import Any, NamedTuple, SupportsFloat

import numpy as np

from icl_jax.maths.head_scores import HEAD_THRESHOLD, InductionHead, first_induction_head
from icl_jax.rundir.files import is_bucket

INIT_TIMEOUT_S = 20.0
"""Longest that W&B may take to start a run."""
FINISH_TIMEOUT_S = 20.0
"""Longest that the end of a run waits for uploads."""


class Point:
    """A row of W&B's history; with a probe's curve and head scores, which become a chart and perhaps an alert."""

    __slots__ = ("curve_T", "prefix_matching_NH", "row")

    def __init__(
        self,
        row: dict[str, SupportsFloat],
        curve_T: np.ndarray | None = None,
        prefix_matching_NH: np.ndarray | None = None,
    ) -> None:
        self.row = row
        self.curve_T = curve_T
        self.prefix_matching_NH = prefix_matching_NH


class Snapshot(NamedTuple):
    """A snapshot that is complete on disk; `path` may be a bucket's."""

    step: int
    tokens: int
    path: str


class MembersTable(NamedTuple):
    """A row for each member of a run."""

    columns: list[str | int]
    rows: list[list[Any]]


def open_run(init: dict[str, Any]) -> Any:
    """Start or continue the W&B run of these arguments of ``wandb.init``, without a word on the terminal."""
    # wandb replaces both to learn the exit code, which finish() is told, and then prints tracebacks twice.
    excepthook, exit_fn = sys.excepthook, sys.exit
    try:
        import wandb

        # W&B's notices would go to stderr, into the progress display; it writes them to its own log as well.
        silent = wandb.Settings(silent=True)
        wandb.termsetup(silent, None)
        settings = wandb.Settings(
            silent=True,
            quiet=True,
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            label_disable=True,
            allow_val_change=True,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S + 1,  # the tracker gives up first; then W&B's exit hook soon does too
            reinit="create_new",  # leave alone a W&B run that the caller may have open
        )
        run = wandb.init(settings=settings, resume="allow", **init)
        wandb.termsetup(silent, None)  # again: it has taken W&B's own settings
    finally:
        sys.excepthook, sys.exit = excepthook, exit_fn
    run.define_metric("tokens")
    run.define_metric("*", step_metric="tokens")
    return run


def tear_down() -> None:
    """End W&B's process and take back its exit hook, which prints a traceback if that process has died."""
    with contextlib.suppress(BaseException):
        import wandb

        wandb.teardown(exit_code=1)


def history_row(point: Point) -> dict[str, Any]:
    row: dict[str, Any] = {name: value if isinstance(value, int) else float(value) for name, value in point.row.items()}
    if point.curve_T is not None:
        import wandb

        data = [[position, loss] for position, loss in enumerate(point.curve_T.tolist())]
        table = wandb.Table(columns=["position", "loss_nats"], data=data)
        title = "Held-out loss at each token position (nats)"
        row["loss_by_position"] = wandb.plot.line(table, "position", "loss_nats", title=title)
    return row


def log_artifact(run: Any, snapshot: Snapshot) -> None:
    """Keep a snapshot as a version of the run's model. What is in a bucket stays there and is referred to.

    No copies on this disk: a snapshot never changes once it is complete.
    """
    import wandb

    metadata = {"step": snapshot.step, "tokens": snapshot.tokens}
    artifact = wandb.Artifact(f"{run.id}-snapshots", type="model", metadata=metadata)
    if is_bucket(snapshot.path):
        artifact.add_reference(snapshot.path)
    else:
        artifact.add_dir(snapshot.path, policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=[f"step-{snapshot.step}", "latest"])


def log_members(run: Any, table: MembersTable) -> None:
    """The table in the run's workspace."""
    import wandb

    run.log({"members": wandb.Table(columns=table.columns, data=table.rows)})


class InductionNews:
    """One alert when induction heads form, and where, in the run's summary.

    Not again in a resumed run: `known` is what the run's record holds. The record forgets what came after the last
    saved state when a crash takes a run back; online, the W&B run's own summary still knows.
    """

    AT_TOKENS, HEAD = "induction_heads_at_tokens", "induction_heads_head"

    def __init__(self, run: Any, known: InductionHead | None) -> None:
        self._run = run
        self._is_told = known is not None or run.summary.get(self.AT_TOKENS) is not None
        if known is not None:
            self._summarise(known)

    def look(self, point: Point) -> None:
        if self._is_told or point.prefix_matching_NH is None:
            return
        found = first_induction_head(np.array([point.row["tokens"]]), point.prefix_matching_NH[None])
        if found is None:
            return
        self._is_told = True
        self._summarise(found)
        head, score = f"L{found.layer}H{found.head}", f"{found.score:.2f}"
        text = f"After {found.tokens:,} tokens head {head} has prefix matching {score} ({HEAD_THRESHOLD} or more)."
        self._run.alert("Induction heads have formed", text)

    def _summarise(self, found: InductionHead) -> None:
        self._run.summary[self.AT_TOKENS] = found.tokens
        self._run.summary[self.HEAD] = f"L{found.layer}H{found.head}"


def auto_mode() -> tuple[str, str]:
    """What ``tracker.wandb = "auto"`` means here, and why: from the environment and files, never the network."""
    try:
        from wandb.sdk import wandb_setup
    except ImportError:
        return "disabled", "wandb is not installed"
    settings = wandb_setup.singleton().settings  # unlike wandb.setup(), starts no process
    if settings.mode == "disabled":
        return "disabled", "WANDB_MODE"
    if settings.mode in ("offline", "dryrun"):
        return "offline", "WANDB_MODE"
    return ("online", "logged in") if is_logged_in() else ("disabled", "not logged in")


def server_address() -> str:
    """Where W&B is, by the environment and its settings."""
    from wandb.sdk import wandb_setup

    return str(wandb_setup.singleton().settings.base_url)


def is_logged_in() -> bool:
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    settings = wandb_setup.singleton().settings
    host = wbauth.HostUrl(settings.base_url, app_url=settings.app_url)
    # Looks at WANDB_API_KEY, identity tokens, netrc and W&B's settings files, and asks neither user nor server.
    auth = wbauth.authenticate_session(host=host, source="icl_jax", prompt=False, update_session=False)
    return auth is not None
