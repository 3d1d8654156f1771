"""Whether this machine alone can hold a cluster; found out without Ray and without torch."""

from pathlib import Path

from autotune.cluster import Cluster
from autotune.errors import ClusterTooSmall

_DRIVER_DEVICES = Path("/proc/driver/nvidia/gpus")


def refuse_without_devices(cluster: Cluster) -> None:
    """Raise ClusterTooSmall where this machine alone cannot hold the cluster."""
    if cluster.device.kind == "cpu":
        return
    devices = len(list(_DRIVER_DEVICES.glob("*")))
    if cluster.nodes > 1 or devices < cluster.gpus_per_node:
        raise ClusterTooSmall(too_small(cluster, f"this machine is 1 node of {devices} GPUs"))


def too_small(cluster: Cluster, has: str) -> str:
    """The sentence for a cluster that is not there: what is needed, and what there is."""
    what = "GPUs" if cluster.device.kind == "gpu" else "virtual devices"
    nodes = "node" if cluster.nodes == 1 else "nodes"
    return f"needs {cluster.nodes} {nodes} of {cluster.gpus_per_node} {what}, {has}"
