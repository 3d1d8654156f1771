"""Placement group of a trial, and the actor that manages each of its nodes."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import tune
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from autotune.cluster import Cluster
from autotune.errors import NodeCheckFailed, NodeLost, NodeOutOfMemory, first_line
from autotune.on_ray.nodes import NODE_CPUS, device_resource
from autotune.trial.trainable import RankHost

HEAD_RESOURCE = "node:__internal_head__"
"""Ray resource that only the head has; pins an actor to the head."""

_NODE_LABEL = "ray.io/node-id"
# Includes the start of a Ray worker, possibly from a cold disk.
_START_TIMEOUT_SECONDS = 360.0
# Period of the heartbeat, and timeout of its answer: a disconnected node is detected within the sum
# of both. A busy node answers within a fraction of that.
_HEARTBEAT_SECONDS = 3.0
_PING_TIMEOUT_SECONDS = 7.0
# A node actor that gets no heartbeat for so long is disconnected from the head: it ends its ranks.
_HEARTBEAT_TIMEOUT_SECONDS = 30.0
_CLOSE_TIMEOUT_SECONDS = 15.0
MOST_VIRTUAL_BUNDLES = 1024
"""The most virtual nodes that get a bundle each. Ray takes 1.4 s to create such a group, and 1 s
more to shut down; both times are quadratic in the bundles (4,096: 20 s and 16 s)."""


def node_group(
    cluster: Cluster, world_size: int, *, virtual: bool = False, avoid: Sequence[str] = ()
) -> tune.PlacementGroupFactory:
    """A placement group: bundle 0 on the head for the trainable, then one whole node per bundle.

    A bundle takes all devices of a node (`check_capacity` checks the sizes), so no two bundles are
    on one node, whatever the strategy. More than `MOST_VIRTUAL_BUNDLES` `virtual` nodes, which are
    all on the head, are one bundle. `avoid` holds Ray's ids of nodes to leave out.
    """
    nodes = -(-world_size // cluster.gpus_per_node)
    bundles = 1 if virtual and nodes > MOST_VIRTUAL_BUNDLES else nodes
    bundle: dict[str, int | float] = {
        device_resource(cluster, virtual=virtual): nodes // bundles * cluster.gpus_per_node,
        "CPU": nodes // bundles * NODE_CPUS,
    }
    labels = {_NODE_LABEL: f"!in({','.join(avoid)})"} if avoid else {}
    return tune.PlacementGroupFactory(
        [{HEAD_RESOURCE: 0.001}, *[dict(bundle) for _ in range(bundles)]],
        strategy="PACK",
        bundle_label_selector=[{}, *[dict(labels) for _ in range(bundles)]],
    )


class NodeGroup:
    """The node actors of a trial's placement group, one per whole node."""

    def __init__(self, group: PlacementGroup, cluster: Cluster, factory: Callable[..., RankHost]):
        """Start the actors; bundle 0 is the trainable's own. Raises NodeLost."""
        resource = device_resource(cluster)
        devices: dict[str, Any] = {"resources": {resource: cluster.gpus_per_node}}
        if resource == "GPU":
            devices = {"num_gpus": cluster.gpus_per_node}
        bundles = range(1, group.bundle_count)
        node_actor: Any = _NodeActor
        self._actors = [
            node_actor.options(
                num_cpus=NODE_CPUS,
                max_concurrency=4,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=bundle
                ),
                **devices,
            ).remote(factory)
            for bundle in bundles
        ]
        try:
            nodes = ray.get(
                [actor.place.remote() for actor in self._actors], timeout=_START_TIMEOUT_SECONDS
            )
        except ray.exceptions.RayError as error:
            raise NodeLost(f"a node did not start its actor: {_reason(error)}") from None
        self.names: list[dict[str, str]] = nodes
        """Each node's `node_id` (Ray's) and `address`, in the order of the hosts."""
        self._hosts = [
            _RemoteHost(actor, f"node {index} ({node['address']})")
            for index, (actor, node) in enumerate(zip(self._actors, nodes, strict=True))
        ]

    @property
    def hosts(self) -> list[RankHost]:
        """The hosts that start the ranks, in the order of the bundles."""
        return list(self._hosts)

    def close(self) -> None:
        """End the node actors and their ranks, without waiting for lost nodes."""
        closing = [
            actor.close.remote()
            for actor, host in zip(self._actors, self._hosts, strict=True)
            if not host.is_lost
        ]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_TIMEOUT_SECONDS)
        for actor in self._actors:
            ray.kill(actor)


@ray.remote
class _NodeActor:
    """Reserves the devices of one node and starts the ranks there.

    Ray ends the actor with its placement group, and its ranks end with it. If the network between
    node and head fails, Ray takes 15 minutes to notice, so the actor ends its ranks by itself when
    heartbeats stop.
    """

    def __init__(self, factory: Callable[..., RankHost]) -> None:
        self._address = ray.util.get_node_ip_address()
        self._host = factory(address=self._address)
        self._has_ranks = False
        self._last_heartbeat = time.monotonic()
        threading.Thread(target=self._end_ranks_without_heartbeat, daemon=True).start()

    def place(self) -> dict[str, str]:
        return {"node_id": ray.get_runtime_context().get_node_id(), "address": self._address}

    def ping(self) -> None:
        self._last_heartbeat = time.monotonic()

    def listen(self) -> tuple[str, int]:
        return self._host.listen()

    def start(self, job: Mapping[str, Any]) -> None:
        self.ping()
        self._has_ranks = True
        self._host.start(job)

    def events(self, timeout_seconds: float) -> list[dict[str, Any]]:
        self.ping()
        return self._host.events(timeout_seconds)

    def stop(self) -> None:
        self._host.stop()
        self._has_ranks = False

    def close(self) -> None:
        self._host.close()

    def _end_ranks_without_heartbeat(self) -> None:
        while (
            not self._has_ranks
            or time.monotonic() - self._last_heartbeat < _HEARTBEAT_TIMEOUT_SECONDS
        ):
            time.sleep(1.0)
        self._host.close()

    def __repr__(self) -> str:
        return "Node"


class _RemoteHost:
    """Calls the host on another node. A `RankHost`; converts Ray's errors to NodeLost."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor = actor
        self._name = name
        self.is_lost = False

    def listen(self) -> tuple[str, int]:
        address, port = self._call("listen")
        return str(address), int(port)

    def start(self, job: Mapping[str, Any]) -> None:
        self._call("start", job)

    def events(self, timeout_seconds: float) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self._call("events", timeout_seconds)
        return events

    def stop(self) -> None:
        self._call("stop")

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the node actor, and wait as long as the node answers heartbeats.

        There is no timeout: the host enforces its own deadlines. A lost node is not called again,
        because each call would wait for the heartbeat's timeout.
        """
        if self.is_lost:
            raise NodeLost(f"{self._name} was lost before")
        try:
            answer = getattr(self._actor, method).remote(*arguments)
            while not ray.wait([answer], timeout=_HEARTBEAT_SECONDS)[0]:
                ray.get(self._actor.ping.remote(), timeout=_PING_TIMEOUT_SECONDS)
            return ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, NodeCheckFailed):
                raise NodeCheckFailed(f"{self._name}: {error.cause}") from None
            raise NodeLost(f"{self._name}: {first_line(error.cause)}") from None
        except ray.exceptions.OutOfMemoryError as error:
            self.is_lost = True
            raise NodeOutOfMemory(f"{self._name}: {first_line(error)}") from None
        except ray.exceptions.RayError as error:
            self.is_lost = True
            raise NodeLost(f"{self._name}: {_reason(error)}") from None


def _reason(error: ray.exceptions.RayError) -> str:
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return "it no longer answers"
    return first_line(error)
