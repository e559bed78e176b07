"""`icl-jax workspace`: a saved W&B workspace with the charts of this program's runs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from icl_jax.cli.arguments import ConfigArgs
from icl_jax.config import UserError
from icl_jax.display import say
from icl_jax.rundir.files import reason

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


@dataclass(frozen=True, kw_only=True)
class WorkspaceArgs(ConfigArgs):
    """Arguments of `icl-jax workspace`."""

    name: str = "Phase change"
    """Name of the workspace. One more call saves one more workspace."""


def workspace(args: WorkspaceArgs, console: Console) -> int:
    """Save the workspace in the config's W&B project and print its address. Raises UserError."""
    from icl_jax.train.watch.wandb_run import is_logged_in, server_address

    tracker = args.overrides.tracker
    if not is_logged_in():
        raise UserError("W&B is not logged in: run `wandb login` or set WANDB_API_KEY")
    say(console, f"asks W&B at {server_address()}, half a minute at most")
    try:
        import wandb

        entity = tracker.entity or wandb.Api().default_entity or ""
        saved = layout(entity, tracker.project, args.name).save()
    except ImportError:
        raise UserError('icl-jax workspace needs the package: pip install "icl-jax[workspace]"') from None
    except Exception as error:  # W&B's, requests', GraphQL's: whatever went wrong with the network or the account
        raise UserError(f"W&B: {reason(error)}") from None
    say(console, saved.url)
    return 0


def layout(entity: str, project: str, name: str) -> "Workspace":
    """The workspace, not saved yet: what the tracker sends, over tokens."""
    import wandb_workspaces.reports.v2 as charts
    import wandb_workspaces.workspaces as workspaces

    def lines(title: str, *metrics: str) -> charts.LinePlot:
        return charts.LinePlot(title=title, x="tokens", title_x="tokens", y=list(metrics))

    def heads(title: str, score: str) -> charts.LinePlot:
        return charts.LinePlot(title=title, x="tokens", title_x="tokens", metric_regex=f"{score}/L.*")

    curve = charts.CustomChart(
        query={"summaryTable": {"tableKey": "loss_by_position_table"}},
        chart_name="wandb/line/v0",
        chart_fields={"x": "position", "y": "loss_nats"},
        chart_strings={"title": "Held-out loss at each token position (nats)"},
    )
    sections = [
        workspaces.Section(
            name="The change",
            panels=[
                lines("Loss (nats)", "loss"),
                lines("ICL score (nats)", "icl_windowed", "icl_score"),
                lines("Its standard error (nats)", "icl_sem", "icl_score_sem"),
                lines("Best prefix matching", "prefix_matching_max"),
                lines("Best previous-token attention", "previous_token_max"),
            ],
            is_open=True,
        ),
        workspaces.Section(
            name="Every head",
            panels=[heads("Prefix matching", "prefix_matching"), heads("Previous token", "previous_token")],
            is_open=True,
        ),
        workspaces.Section(name="Loss by position", panels=[curve], is_open=True),
        workspaces.Section(
            name="Training",
            panels=[
                lines("Learning rate", "lr"),
                lines("Gradient norm", "grad_norm"),
                lines("Tokens/s", "tokens_per_s"),
            ],
        ),
    ]
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=sections)
