"""The cluster that layouts run on: identical nodes of identical devices."""

from pydantic.dataclasses import dataclass

from autotune.errors import ClusterTooSmall
from autotune.hardware import Device, Network, usual_network
from autotune.hardware.local_devices import local_gpus
from autotune.inputs import PositiveFloat, PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Cluster:
    """The nodes that a search may reserve."""

    nodes: PositiveInt
    """Number of nodes; every layout uses all of them."""
    gpus_per_node: PositiveInt
    """Devices per node (GPUs, or virtual devices on CPUs); each runs one rank."""
    device: Device
    """Type of the devices."""
    memory_gib: PositiveFloat | None = None
    """Memory limit per rank; on CPUs the operating system enforces it. None: all of the device."""
    network: Network | None = None
    """Links and network of the nodes; None: those that nodes of this device usually have."""

    @property
    def links(self) -> Network:
        """The given network, or the usual one of the device."""
        return self.network or usual_network(self.device)

    @property
    def devices(self) -> int:
        """Devices of all nodes: the world size of every layout."""
        return self.nodes * self.gpus_per_node

    def describe(self) -> str:
        """The cluster as text, for example ``8 nodes of 8 a100-80gb``."""
        virtual = "virtual " if self.device.kind == "cpu" else ""
        nodes = "node" if self.nodes == 1 else "nodes"
        return f"{self.nodes} {virtual}{nodes} of {self.gpus_per_node} {self.device.name}"

    def too_small(self, available: str) -> str:
        """Error message: the nodes that are needed, then `available`, a phrase for what exists."""
        what = "GPUs" if self.device.kind == "gpu" else "virtual devices"
        nodes = "node" if self.nodes == 1 else "nodes"
        return f"needs {self.nodes} {nodes} of {self.gpus_per_node} {what}, {available}"

    def check_this_machine(self) -> None:
        """Raise ClusterTooSmall where this machine has too few GPUs for the cluster."""
        gpus = local_gpus() if self.device.kind == "gpu" else None
        if gpus is not None and (self.nodes > 1 or gpus < self.gpus_per_node):
            raise ClusterTooSmall(self.too_small(f"this machine is 1 node of {gpus} GPUs"))
