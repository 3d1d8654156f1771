"""Runs a probe on the ranks of all nodes, and collects what they measured."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Literal

from autotune.cluster import Cluster
from autotune.errors import NodeCheckFailed
from autotune.trial.trainable import Finding, RankHost
from trainables.deepspeed_llm.job import Job
from trainables.deepspeed_llm.launch import (
    DeepSpeedLlm,
    cause_of,
    collect_failures,
    is_failure,
    spec_of_all_ranks,
)

# Start of the ranks, and the points that are measured although the time is over.
_EXTRA_SECONDS = 60.0
_POLL_SECONDS = 1.0


class DeepSpeedProber:
    """Measures with the ranks and the libraries that train layouts. A `Prober`."""

    def __init__(
        self, *, device_kind: Literal["gpu", "cpu"], env: Mapping[str, str] | None = None
    ) -> None:
        """`env`: variables for the ranks, which override the node's."""
        self._trainable = DeepSpeedLlm(device_kind=device_kind, env=env)

    @property
    def host_factory(self) -> Callable[..., RankHost]:
        """A host process on each node, the same as of a trial."""
        factory = self._trainable.host_factory
        assert factory is not None
        return factory

    def measure(
        self, cluster: Cluster, hosts: Sequence[RankHost], *, seconds: float
    ) -> Generator[Finding | None, None, None]:
        """Check the nodes, then measure; see `Prober.measure`."""
        self._trainable.check(cluster, hosts)
        with Job("probe", spec_of_all_ranks(cluster, seconds), hosts) as job:
            deadline = time.monotonic() + seconds + _EXTRA_SECONDS
            running = job.world_size
            while running:
                event = job.next_event(time.monotonic() + _POLL_SECONDS)
                if event is None:
                    if time.monotonic() > deadline:
                        raise NodeCheckFailed(
                            f"the measurements were not done within {seconds:g} s, and "
                            f"{_EXTRA_SECONDS:g} s more"
                        )
                    yield None
                elif is_failure(event):
                    _, reason = cause_of(collect_failures(event, job))
                    raise NodeCheckFailed(f"the measurements failed: {reason}")
                elif event["event"] == "measured":
                    yield Finding(curve=event["curve"], point=event["point"])
                elif event["event"] == "done":
                    running -= 1
