"""Runs one job on whole nodes of the connected Ray cluster, without Ray Tune."""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

import ray
from ray.util import remove_placement_group

from autotune.cluster import Cluster
from autotune.errors import NodeLost
from autotune.on_ray.head_watch import run_while_head_answers
from autotune.on_ray.placement import NodeGroup, node_group
from autotune.trial.trainable import RankHost

T = TypeVar("T")

_GROUP_SECONDS = 60.0


def run_on_nodes(
    cluster: Cluster,
    factory: Callable[..., RankHost],
    work: Callable[[Sequence[RankHost]], Generator[T | None, None, None]],
    receive: Callable[[T], object],
    *,
    title: str,
) -> None:
    """Reserve all nodes of the cluster; pass on to `receive` what `work` finds with their hosts.

    `title` is the name in Ray's dashboard. `work` gives None at least every few seconds, so that it
    can be stopped. However it ends, no rank and no reservation is left. Raises its exceptions,
    NodeLost, HeadGone, KeyboardInterrupt.
    """
    stopped = threading.Event()

    def loop() -> None:
        with (
            _reserved(cluster, factory, title) as hosts,
            contextlib.closing(work(hosts)) as findings,
        ):
            for finding in findings:
                if stopped.is_set():
                    return
                if finding is not None:
                    receive(finding)

    run_while_head_answers(loop, stop=stopped.set)


@contextlib.contextmanager
def _reserved(
    cluster: Cluster, factory: Callable[..., RankHost], title: str
) -> Iterator[list[RankHost]]:
    """The hosts of all nodes of the cluster, which are reserved inside."""
    group = node_group(cluster, cluster.devices, title=title).to_placement_group()
    try:
        if not group.wait(_GROUP_SECONDS):
            raise NodeLost(cluster.too_small("but those of the cluster are in use"))
        nodes = NodeGroup(group, cluster, factory, title=title)
        try:
            yield nodes.hosts
        finally:
            nodes.close()
    except ray.exceptions.RayError as error:
        raise NodeLost(f"the nodes could not be reserved: {error}") from None
    finally:
        remove_placement_group(group)
