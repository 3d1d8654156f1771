"""Whether this machine alone can hold a cluster; found out without Ray and without torch."""

from pathlib import Path

from autotune.cluster import Cluster
from autotune.errors import ClusterTooSmall

# Sandboxes show the device files, but not always what the driver says in /proc.
_WHERE_GPUS_ARE_SEEN = (("/proc/driver/nvidia/gpus", "*"), ("/dev", "nvidia[0-9]*"))


def local_gpus() -> int:
    """How many NVIDIA GPUs this machine has."""
    return max(len(list(Path(folder).glob(name))) for folder, name in _WHERE_GPUS_ARE_SEEN)


def refuse_without_devices(cluster: Cluster) -> None:
    """Raise ClusterTooSmall where this machine alone cannot hold the cluster."""
    if cluster.device.kind == "cpu":
        return
    devices = local_gpus()
    if cluster.nodes > 1 or devices < cluster.gpus_per_node:
        raise ClusterTooSmall(too_small(cluster, f"this machine is 1 node of {devices} GPUs"))


def too_small(cluster: Cluster, has: str) -> str:
    """The sentence for a cluster that is not there: what is needed, and what there is."""
    what = "GPUs" if cluster.device.kind == "gpu" else "virtual devices"
    nodes = "node" if cluster.nodes == 1 else "nodes"
    return f"needs {cluster.nodes} {nodes} of {cluster.gpus_per_node} {what}, {has}"
