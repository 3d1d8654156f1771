"""On what is tuned: equal nodes of equal devices."""

from pydantic.dataclasses import dataclass

from autotune.errors import ClusterTooSmall
from autotune.hardware import Device, Network, usual_network
from autotune.hardware.local_devices import local_gpus
from autotune.inputs import PositiveFloat, PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Cluster:
    """The nodes that a search may reserve."""

    nodes: PositiveInt
    """Nodes that every layout uses."""
    gpus_per_node: PositiveInt
    """Devices of a node (GPUs, or virtual devices on CPUs); also the ranks of a node."""
    device: Device
    """What each device is."""
    memory_gib: PositiveFloat | None = None
    """Budget per rank, enforced by the operating system on CPUs; None is the device's own."""
    network: Network | None = None
    """What connects the devices; None is what nodes of the device usually have."""

    @property
    def links(self) -> Network | None:
        """What connects the devices, as far as it is known."""
        return self.network or usual_network(self.device)

    @property
    def devices(self) -> int:
        """All devices: the world size of every layout."""
        return self.nodes * self.gpus_per_node

    def describe(self) -> str:
        """The cluster in words, for example ``8 nodes of 8 a100-80gb``."""
        virtual = "virtual " if self.device.kind == "cpu" else ""
        nodes = "node" if self.nodes == 1 else "nodes"
        return f"{self.nodes} {virtual}{nodes} of {self.gpus_per_node} {self.device.name}"

    def too_small(self, available: str) -> str:
        """The sentence for a cluster that is not there: what is needed, and what there is."""
        what = "GPUs" if self.device.kind == "gpu" else "virtual devices"
        nodes = "node" if self.nodes == 1 else "nodes"
        return f"needs {self.nodes} {nodes} of {self.gpus_per_node} {what}, {available}"

    def check_this_machine(self) -> None:
        """Raise ClusterTooSmall where this machine alone cannot hold the cluster."""
        gpus = local_gpus() if self.device.kind == "gpu" else None
        if gpus is not None and (self.nodes > 1 or gpus < self.gpus_per_node):
            raise ClusterTooSmall(self.too_small(f"this machine is 1 node of {gpus} GPUs"))
