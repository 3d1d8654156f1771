"""Nodes of the connected Ray cluster: which are usable and free, and their software."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autotune.cluster import Cluster
from autotune.errors import ClusterTooSmall, NodeCheckFailed, first_line
from autotune.hardware.kernels import MODULES, why_not_installed
from autotune.on_ray.ray_internals import available_resources_by_node

VIRTUAL_DEVICE = "virtual_device"
"""Ray resource of a virtual device: a CPU device, or a device of simulated trials."""

NODE_CPUS = 1
"""CPUs that a trial reserves per node in Ray; its ranks may use more."""

# Includes the start of a Ray worker, possibly from a cold disk.
_DESCRIBE_TIMEOUT_SECONDS = 360.0
# Resources that another search has just released are free within seconds.
_FREE_TIMEOUT_SECONDS = 20.0
_POLL_SECONDS = 0.2
_PACKAGES_THAT_MUST_AGREE = ("torch", "deepspeed", "ray")
_CODE = ("autotune", "trainables", "search_spaces")


def device_resource(cluster: Cluster, *, virtual: bool = False) -> str:
    """Ray resource of the cluster's devices: GPU, or `VIRTUAL_DEVICE`."""
    is_gpu = cluster.device.kind == "gpu" and not virtual
    return "GPU" if is_gpu else VIRTUAL_DEVICE


def whole_nodes(cluster: Cluster, *, avoid: Collection[str] = ()) -> list[dict[str, Any]]:
    """Ray's nodes that are alive and have exactly `gpus_per_node` devices.

    Trials take whole nodes, so nodes of another size are unusable. `avoid` holds ids of nodes to
    leave out.
    """
    resource = device_resource(cluster)
    return [
        node
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get(resource, 0) == cluster.gpus_per_node
        and node["NodeID"] not in avoid
    ]


def missing_nodes(
    cluster: Cluster, world_size: int | None = None, *, avoid: Collection[str] = ()
) -> str | None:
    """Error message where Ray has too few whole nodes for `world_size` ranks; else None.

    `world_size` None: all ranks of the cluster. Takes a few milliseconds.
    """
    needed = cluster
    if world_size is not None:
        needed = dataclasses.replace(cluster, nodes=-(-world_size // cluster.gpus_per_node))
    if len(whole_nodes(cluster, avoid=avoid)) >= needed.nodes:
        return None
    resource = device_resource(cluster)
    sizes = [int(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"]]
    has = ", ".join(
        f"{sizes.count(size)} {'node' if sizes.count(size) == 1 else 'nodes'} of {size}"
        for size in sorted(set(sizes), reverse=True)
    )
    larger = max(sizes, default=0) > cluster.gpus_per_node
    rule = " (a trial takes whole nodes)" if larger else ""
    left_out = f" ({len(avoid)} of them to be avoided)" if avoid else ""
    how = ""
    if resource == VIRTUAL_DEVICE and not max(sizes, default=0):
        devices = json.dumps({VIRTUAL_DEVICE: cluster.gpus_per_node})
        how = f" (start a node with them by ray start --resources '{devices}')"
    return needed.too_small(f"the cluster has {has or 'none'}{rule}{left_out}{how}")


def check_capacity(cluster: Cluster) -> None:
    """Raise ClusterTooSmall where Ray has too few whole nodes, or too few of them are free."""
    if problem := missing_nodes(cluster):
        raise ClusterTooSmall(problem)
    deadline = time.monotonic() + _FREE_TIMEOUT_SECONDS
    while (free := len(free_nodes(cluster))) < cluster.nodes:
        if time.monotonic() > deadline:
            has = f"only {free} of the cluster's nodes are free (all devices and {NODE_CPUS} CPU)"
            raise ClusterTooSmall(cluster.too_small(has))
        time.sleep(_POLL_SECONDS)


def free_nodes(cluster: Cluster, *, avoid: Collection[str] = ()) -> list[str]:
    """Ids of whole nodes without reserved devices, except those to `avoid`."""
    resource = device_resource(cluster)
    available = available_resources_by_node()
    return [
        node_id
        for node_id, node in available.items()
        if node.get(resource, 0) == cluster.gpus_per_node
        and node.get("CPU", 0) >= NODE_CPUS
        and node_id not in avoid
    ]


def inspect_nodes(cluster: Cluster) -> list[dict[str, Any]]:
    """Versions, driver, accelerator and kernels of each node that has devices.

    Raises NodeCheckFailed for a node that does not answer, or that differs from the first.
    """
    pending = []
    for node in whole_nodes(cluster):
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        reference = _describe_node.options(scheduling_strategy=on_node, num_cpus=0).remote()
        pending.append((node, reference))
    nodes = []
    for node, reference in pending:
        address = node["NodeManagerAddress"]
        try:
            description = ray.get(reference, timeout=_DESCRIBE_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            problem = first_line(getattr(error, "cause", None) or error)
            raise NodeCheckFailed(f"node {address}: {problem}") from None
        nodes.append({"address": address, "accelerator": _accelerator(node), **description})
    compare_nodes(nodes)
    return nodes


def compare_nodes(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise NodeCheckFailed for the first node whose software differs from that of nodes[0]."""
    first = nodes[0]
    for node in nodes[1:]:
        for what in (*_PACKAGES_THAT_MUST_AGREE, "python", "driver", "code", "accelerator"):
            if node[what] != first[what]:
                raise NodeCheckFailed(
                    f"node {node['address']}: {what} must be the same on every node, got "
                    f"{node[what]} and {first[what]} on node {first['address']}"
                )


def _accelerator(node: Mapping[str, Any]) -> str | None:
    """Ray's accelerator type of a node, such as H100; None where Ray detects none."""
    prefix = "accelerator_type:"
    names = [name for name in node["Resources"] if name.startswith(prefix)]
    return names[0].removeprefix(prefix) if names else None


@ray.remote
def _describe_node() -> dict[str, Any]:
    return describe_this_node()


def describe_this_node() -> dict[str, Any]:
    """Versions of software that must agree between nodes, and missing kernels with the reason."""
    driver = Path("/proc/driver/nvidia/version")
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES_THAT_MUST_AGREE},
        "driver": driver.read_text().splitlines()[0] if driver.exists() else None,
        "code": code_fingerprint(),
        "missing_kernels": {
            kernel: reason for kernel in MODULES if (reason := why_not_installed(kernel))
        },
    }


def code_fingerprint() -> str:
    """A digest of the project's source files."""
    root = Path(__file__).resolve().parent.parent.parent
    digest = hashlib.sha256()
    for package in _CODE:
        files = (root / package).rglob("*")
        for file in sorted(file for file in files if file.suffix in (".py", ".json")):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
