"""Where and how a search runs."""

import dataclasses
from collections.abc import Sequence

from autotune.ledger.clock import SystemClock
from autotune.ledger.deadline import deadline_of
from autotune.loggers import loggers_named


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and how a search runs; all of it may change when the search is resumed."""

    address: str | None = None
    """Address of a running Ray cluster; None: start Ray on this machine."""
    dashboard: bool = True
    """Whether a Ray started here has a dashboard."""
    dashboard_host: str = "127.0.0.1"
    """Address that the dashboard listens on."""
    dashboard_port: int | None = None
    """Port of the dashboard; None: 8265, or the next free one."""
    metrics_port: int | None = None
    """Port where a Ray started here serves its metrics for Prometheus; None: any."""
    keep_ray_logs: bool = False
    """Whether the logs of a Ray started here are kept."""
    report: bool = True
    """Whether report.html is written at the end."""
    wait_for_nodes_seconds: float = 300.0
    """How long to wait for lost nodes to come back."""
    allow_different_cluster: bool = False
    """Whether to resume on other hardware or software than the search started on."""
    explore_anyway: bool = False
    """Whether to search although no layout is predicted to fit into memory."""
    until: str | float | None = None
    """When the search ends: seconds from its start, or a local time in ISO format; None: a minute
    before its Slurm job, elsewhere no limit."""
    log: Sequence[str] = ()
    """Experiment trackers that get every trial as a run (`autotune.loggers.LOGGERS`)."""

    def __post_init__(self) -> None:
        deadline_of(self.until, SystemClock())
        loggers_named(self.log)
