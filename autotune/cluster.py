"""On what is tuned: equal nodes of equal devices."""

from pydantic.dataclasses import dataclass

from autotune.hardware import Device
from autotune.model import PositiveFloat, PositiveInt


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

    @property
    def devices(self) -> int:
        """All devices: the world size of every layout."""
        return self.nodes * self.gpus_per_node

    def describe(self) -> str:
        """The cluster in words, for example ``8 nodes of 8 a100-80gb``."""
        virtual = "virtual " if self.device.kind == "cpu" else ""
        nodes = "node" if self.nodes == 1 else "nodes"
        return f"{self.nodes} {virtual}{nodes} of {self.gpus_per_node} {self.device.name}"
