"""Options that say where and how a search runs."""

from collections.abc import Callable, Mapping
from typing import Any

import click

from autotune.inputs import default_of
from autotune.loggers import LOGGERS
from autotune.options.command_line import IP_ADDRESS, PORT, SECONDS
from autotune.place import Place

# The field of `Place` for an option of another name.
_FIELDS = {"wait_for_nodes": "wait_for_nodes_seconds"}

PLACE_OPTIONS = (
    *("until", "address", "wait_for_nodes", "allow_different_cluster", "explore_anyway"),
    *("dashboard", "dashboard_host", "dashboard_port", "metrics_port", "log", "keep_ray_logs"),
    "report",
)
"""Names of the options."""


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `PLACE_OPTIONS` to a command."""
    options = (
        click.option(
            "--until",
            metavar="TIME|SECONDS",
            help="End in good order by this local time (18:30, 2026-12-01T18:30), or so many "
            "seconds after the start. Default: a minute before the end of a Slurm job.",
        ),
        click.option("--address", metavar="RAY", help="Address of a running Ray cluster."),
        click.option(
            "--wait-for-nodes",
            type=SECONDS,
            default=default_of(Place, "wait_for_nodes_seconds"),
            show_default=True,
            metavar="SECONDS",
            help="How long nodes that went away may take to come back.",
        ),
        click.option(
            "--allow-different-cluster", is_flag=True, help="Resume on other hardware or software."
        ),
        click.option(
            "--explore-anyway", is_flag=True, help="Search although no layout is predicted to fit."
        ),
        click.option("--dashboard/--no-dashboard", default=True, show_default=True),
        click.option(
            "--dashboard-host",
            type=IP_ADDRESS,
            default=default_of(Place, "dashboard_host"),
            show_default=True,
            metavar="ADDRESS",
        ),
        click.option(
            "--dashboard-port",
            type=PORT,
            metavar="PORT",
            help="Default: 8265, or the next free one.",
        ),
        click.option(
            "--metrics-port",
            type=PORT,
            metavar="PORT",
            help="For Prometheus. Default: any free one.",
        ),
        click.option(
            "--log",
            multiple=True,
            metavar="NAME[,NAME]",
            help=f"{', '.join(LOGGERS)}: a run per trial.",
        ),
        click.option(
            "--keep-ray-logs",
            is_flag=True,
            help="Keep the logs of a Ray started here, and say where.",
        ),
        click.option(
            "--report/--no-report",
            default=True,
            show_default=True,
            help="Write report.html at the end.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def place_from_options(options: Mapping[str, Any]) -> Place:
    """The place that the options describe. Raises InputError."""
    return Place(**{_FIELDS.get(name, name): options[name] for name in PLACE_OPTIONS})
