"""Where trials run: the Ray cluster, groups of whole nodes, and the actor that owns each node."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.cluster_utils import Cluster as RayNodes
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from autotune.cluster import Cluster
from autotune.errors import ClusterTooSmall, InputError, NodeCheckFailed, NodeLost
from autotune.local_devices import too_small
from autotune.trainable import RankHost

HEAD_RESOURCE = "node:__internal_head__"
"""Only the head has it: it pins what must run there."""

_VIRTUAL_DEVICE = "virtual_device"
_NODE_CPUS = 1
# A raylet takes a second of a core to start, and 100 MB.
_MOST_RAYLETS = 4
# A node's host process first imports torch and DeepSpeed, from a cold disk perhaps.
_CALL_TIMEOUT_SECONDS = 360.0
# What another search has just given back is free within seconds.
_FREE_TIMEOUT_SECONDS = 20.0
_POLL_SECONDS = 0.2
_CONNECT_TIMEOUT_SECONDS = 5.0
_CLOSE_TIMEOUT_SECONDS = 15.0
_STOP_TIMEOUT_SECONDS = 75.0
_PACKAGES_THAT_MUST_AGREE = ("torch", "deepspeed", "ray")
_CODE = ("autotune", "trainables", "search_spaces")


def device_resource(cluster: Cluster, *, virtual: bool = False) -> str:
    """Ray's name for the cluster's devices: real GPUs, or virtual devices."""
    real = cluster.device.kind == "gpu" and not virtual
    return "GPU" if real else _VIRTUAL_DEVICE


def node_group(
    cluster: Cluster, world_size: int, *, virtual: bool = False
) -> tune.PlacementGroupFactory:
    """A place for the trainable on the head, and whole nodes for `world_size` ranks.

    A bundle takes all devices of a node (`check_capacity` sees to that), so no two fall on one
    node, whatever the strategy.
    """
    nodes = -(-world_size // cluster.gpus_per_node)
    node: dict[str, int | float] = {
        device_resource(cluster, virtual=virtual): cluster.gpus_per_node,
        "CPU": _NODE_CPUS,
    }
    return tune.PlacementGroupFactory(
        [{HEAD_RESOURCE: 0.001}, *[dict(node) for _ in range(nodes)]], strategy="PACK"
    )


@contextlib.contextmanager
def ray_cluster(
    cluster: Cluster, *, address: str | None, dashboard: bool, virtual: bool = False
) -> Iterator[str | None]:
    """Connect to the Ray at `address`, or start one here; yields the dashboard's address.

    What was started here is shut down on the way out. A `virtual` cluster has no devices, whatever
    they are called: trials on it are simulated. Raises ClusterTooSmall, and InputError where
    nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is not None:
        _refuse_unreachable(address)
        try:
            context = ray.init(address=address, **quiet)
        except Exception as error:
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"--address: cannot connect to {address!r}: {first_line}") from None
        nodes = None
    else:
        nodes = _start_local(cluster, dashboard=dashboard, virtual=virtual)
        context = ray.init(address=nodes.address, **quiet)
    try:
        if not virtual:
            check_capacity(cluster)
        url = context.dashboard_url
        yield f"http://{url}" if url and (dashboard or address) else None
    finally:
        ray.shutdown()
        if nodes is not None:
            nodes.shutdown()


def _refuse_unreachable(address: str) -> None:
    """Raise InputError where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like: Ray looks it up
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--address: cannot connect to {address!r}: {error}") from None


def check_capacity(cluster: Cluster) -> None:
    """Raise ClusterTooSmall where the connected Ray has too few whole nodes, or too few free ones.

    A node counts where `gpus_per_node` is all that it has: trials take whole nodes.
    """
    resource = device_resource(cluster)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    sizes = [int(node["Resources"].get(resource, 0)) for node in nodes]
    if sizes.count(cluster.gpus_per_node) < cluster.nodes:
        has = ", ".join(
            f"{sizes.count(size)} {'node' if sizes.count(size) == 1 else 'nodes'} of {size}"
            for size in sorted(set(sizes), reverse=True)
        )
        larger = max(sizes, default=0) > cluster.gpus_per_node
        rule = " (a trial takes whole nodes)" if larger else ""
        raise ClusterTooSmall(too_small(cluster, f"the cluster has {has}{rule}"))
    deadline = time.monotonic() + _FREE_TIMEOUT_SECONDS
    while (free := _free_nodes(cluster)) < cluster.nodes:
        if time.monotonic() > deadline:
            has = f"only {free} of the cluster's are free (all devices and {_NODE_CPUS} CPU)"
            raise ClusterTooSmall(too_small(cluster, has))
        time.sleep(_POLL_SECONDS)


def _free_nodes(cluster: Cluster) -> int:
    """Whole nodes that nobody else holds now."""
    resource = device_resource(cluster)
    available = ray._private.state.available_resources_per_node().values()
    return sum(
        node.get(resource, 0) == cluster.gpus_per_node and node.get("CPU", 0) >= _NODE_CPUS
        for node in available
    )


def inspect_nodes(cluster: Cluster) -> list[dict[str, Any]]:
    """Versions, driver, accelerator and kernels of each node that has devices.

    Raises NodeCheckFailed that names a node that does not answer, or differs from the first.
    """
    resource = device_resource(cluster)
    asked = []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get(resource, 0) == cluster.gpus_per_node:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            reference = _describe_node.options(scheduling_strategy=here, num_cpus=0).remote()
            asked.append((node, reference))
    nodes = []
    for node, reference in asked:
        address = node["NodeManagerAddress"]
        try:
            description = ray.get(reference, timeout=_CALL_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            problem = _first_line(getattr(error, "cause", None) or error)
            raise NodeCheckFailed(f"node {address}: {problem}") from None
        nodes.append({"address": address, "accelerator": _accelerator(node), **description})
    compare_nodes(nodes)
    return nodes


def compare_nodes(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise NodeCheckFailed for the first node whose software differs from the first's."""
    first = nodes[0]
    for node in nodes[1:]:
        for what in (*_PACKAGES_THAT_MUST_AGREE, "python", "driver", "code", "accelerator"):
            if node[what] != first[what]:
                raise NodeCheckFailed(
                    f"node {node['address']}: {what} must be the same on every node, got "
                    f"{node[what]} and {first[what]} on node {first['address']}"
                )


class NodeGroup:
    """The node actors of a trial's placement group, one per whole node."""

    def __init__(self, group: PlacementGroup, cluster: Cluster, factory: Callable[..., RankHost]):
        """Start the actors; bundle 0 is the trainable's own."""
        resource = device_resource(cluster)
        devices: dict[str, Any] = {"resources": {resource: cluster.gpus_per_node}}
        if resource == "GPU":
            devices = {"num_gpus": cluster.gpus_per_node}
        bundles = range(1, group.bundle_count)
        node_actor: Any = _NodeActor
        self._actors = [
            node_actor.options(
                num_cpus=_NODE_CPUS,
                max_concurrency=4,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=bundle
                ),
                **devices,
            ).remote(factory)
            for bundle in bundles
        ]
        self.hosts: list[RankHost] = [
            _RemoteHost(actor, f"node {index}") for index, actor in enumerate(self._actors)
        ]

    def close(self) -> None:
        """End the node actors and the processes that they own."""
        closing = [actor.close.remote() for actor in self._actors]
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(closing, timeout=_CLOSE_TIMEOUT_SECONDS)
        for actor in self._actors:
            ray.kill(actor)


@ray.remote
class _NodeActor:
    """Owns the devices of one node. Dies with its placement group; its processes die with it."""

    def __init__(self, factory: Callable[..., RankHost]) -> None:
        self._host = factory(address=ray.util.get_node_ip_address())

    def listen(self) -> tuple[str, int]:
        return self._host.listen()

    def start(self, job: Mapping[str, Any]) -> None:
        self._host.start(job)

    def events(self, timeout_seconds: float) -> list[dict[str, Any]]:
        return self._host.events(timeout_seconds)

    def stop(self) -> None:
        self._host.stop()

    def close(self) -> None:
        self._host.close()

    def __repr__(self) -> str:
        return "Node"


class _RemoteHost:
    """The host of another node. A `RankHost`; Ray's errors become NodeLost here."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor = actor
        self._name = name

    def listen(self) -> tuple[str, int]:
        address, port = self._call("listen")
        return str(address), int(port)

    def start(self, job: Mapping[str, Any]) -> None:
        self._call("start", job)

    def events(self, timeout_seconds: float) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self._call(
            "events", timeout_seconds, within_seconds=timeout_seconds + _CLOSE_TIMEOUT_SECONDS
        )
        return events

    def stop(self) -> None:
        self._call("stop", within_seconds=_STOP_TIMEOUT_SECONDS)

    def close(self) -> None:
        self._call("close")

    def _call(
        self, method: str, *arguments: Any, within_seconds: float = _CALL_TIMEOUT_SECONDS
    ) -> Any:
        reference = getattr(self._actor, method).remote(*arguments)
        try:
            return ray.get(reference, timeout=within_seconds)
        except ray.exceptions.RayTaskError as error:
            raise NodeLost(f"{self._name}: {_first_line(error.cause)}") from None
        except ray.exceptions.RayError as error:
            raise NodeLost(f"{self._name}: {_first_line(error)}") from None


def _accelerator(node: Mapping[str, Any]) -> str | None:
    """Ray's name for what a node has, such as H100; None where Ray knows none."""
    prefix = "accelerator_type:"
    names = [name for name in node["Resources"] if name.startswith(prefix)]
    return names[0].removeprefix(prefix) if names else None


@ray.remote
def _describe_node() -> dict[str, Any]:
    return describe_this_node()


def describe_this_node() -> dict[str, Any]:
    """Versions of what must agree between nodes, without importing any of it."""
    driver = Path("/proc/driver/nvidia/version")
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES_THAT_MUST_AGREE},
        "driver": driver.read_text().splitlines()[0] if driver.exists() else None,
        "code": code_fingerprint(),
        "flash_attn": importlib.util.find_spec("flash_attn") is not None,
    }


def code_fingerprint() -> str:
    """A digest of our own source files."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in _CODE:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _start_local(cluster: Cluster, *, dashboard: bool, virtual: bool) -> RayNodes:
    """Ray on this machine: the head is the first node, the others are further raylets.

    Where they would be many (and have no devices anyway), the head carries them all.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    carried = cluster.nodes if virtual and cluster.nodes > _MOST_RAYLETS else 1
    devices: dict[str, Any] = {"resources": {_VIRTUAL_DEVICE: carried * cluster.gpus_per_node}}
    if device_resource(cluster, virtual=virtual) == "GPU":
        devices = {"num_gpus": cluster.gpus_per_node}
    node = {
        "num_cpus": carried * _NODE_CPUS + 1,
        "object_store_memory": 100 * 2**20,
        **devices,
    }
    head = {"include_dashboard": dashboard, "dashboard_host": "127.0.0.1"}
    nodes = RayNodes(initialize_head=True, head_node_args={**node, **head}, shutdown_at_exit=True)
    for _ in range(cluster.nodes - carried):
        nodes.add_node(wait=False, **node)
    nodes.wait_for_nodes()
    return nodes


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
