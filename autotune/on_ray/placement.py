"""Placement group of a trial, with an actor on each of its nodes."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from autotune.cluster import Cluster
from autotune.errors import NodeLost
from autotune.on_ray.node_actor import NodeActor, RemoteHost, name_of_node, reason_of
from autotune.on_ray.nodes import NODE_CPUS, device_resource
from autotune.trial.trainable import RankHost

HEAD_RESOURCE = "node:__internal_head__"
"""Ray resource that only the head has; pins an actor to the head."""

_NODE_LABEL = "ray.io/node-id"
# Includes the start of a Ray worker, possibly from a cold disk.
_START_TIMEOUT_SECONDS = 360.0
_CLOSE_TIMEOUT_SECONDS = 15.0
MOST_VIRTUAL_BUNDLES = 1024
"""The most virtual nodes that get a bundle each. Ray takes 1.4 s to create such a group, and 1 s
more to shut down; both times are quadratic in the bundles (4,096: 20 s and 16 s)."""


def node_group(
    cluster: Cluster,
    world_size: int,
    *,
    title: str,
    virtual: bool = False,
    avoid: Sequence[str] = (),
) -> tune.PlacementGroupFactory:
    """A placement group: bundle 0 on the head for the trainable, then one whole node per bundle.

    `title` says in Ray's dashboard whose group it is.

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
    return _TitledGroups(
        [{HEAD_RESOURCE: 0.001}, *[dict(bundle) for _ in range(bundles)]],
        [{}, *[dict(labels) for _ in range(bundles)]],
        title=title,
    )


class _TitledGroups(tune.PlacementGroupFactory):
    """Makes groups whose names begin with a title. Each has a name of its own, as Ray refuses that
    of a group which is still being removed, while requests of one title remain equal."""

    def __init__(
        self,
        bundles: list[dict[str, int | float]],
        labels: list[dict[str, str]],
        *,
        title: str,
    ) -> None:
        super().__init__(bundles, strategy="PACK", bundle_label_selector=labels)
        self._labels = labels
        self._title = title

    def to_placement_group(self) -> PlacementGroup:
        return placement_group(
            self.bundles,
            strategy=self.strategy,
            bundle_label_selector=self._labels,
            name=f"{self._title} ({uuid.uuid4().hex[:6]})",
        )


class NodeGroup:
    """The node actors of a trial's placement group, one per whole node."""

    def __init__(
        self,
        group: PlacementGroup,
        cluster: Cluster,
        factory: Callable[..., RankHost],
        *,
        title: str,
    ):
        """Start the actors; bundle 0 is the trainable's own, and `title` is that of the first job.
        Raises NodeLost."""
        resource = device_resource(cluster)
        devices: dict[str, Any] = {"resources": {resource: cluster.gpus_per_node}}
        if resource == "GPU":
            devices = {"num_gpus": cluster.gpus_per_node}
        bundles = range(1, group.bundle_count)
        node_actor: Any = NodeActor
        self._actors = [
            node_actor.options(
                num_cpus=NODE_CPUS,
                max_concurrency=4,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=bundle
                ),
                **devices,
            ).remote(factory, bundle - 1)
            for bundle in bundles
        ]
        try:
            nodes = ray.get(
                [actor.place.remote() for actor in self._actors], timeout=_START_TIMEOUT_SECONDS
            )
        except ray.exceptions.RayError as error:
            raise NodeLost(f"a node did not start its actor: {reason_of(error)}") from None
        self.names: list[dict[str, str]] = nodes
        """Each node's `node_id` (Ray's) and `address`, in the order of the hosts."""
        self._hosts = [
            RemoteHost(actor, name_of_node(index, node["address"]))
            for index, (actor, node) in enumerate(zip(self._actors, nodes, strict=True))
        ]
        self.entitle(title)

    def entitle(self, title: str) -> None:
        """Name the next jobs in Ray's dashboard: on each node a job is one task of that name."""
        for host in self._hosts:
            host.title = title

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
