"""Figures of links within a node and of the network between nodes, one JSON file each.

They are separate from those of devices, because nodes with the same GPU have different networks.
"""

import functools

from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.hardware import files
from autotune.hardware.constants import ConstantsOfFile
from autotune.hardware.devices import Device
from autotune.inputs import Name


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Network:
    """The links of a node's devices, and the network between nodes."""

    name: Name
    """Lower-case name, the same as the file's."""
    source: str
    """Where the figures come from."""
    constants: ConstantsOfFile = Field(default_factory=dict)
    """Constants of the cost model (those "of": "network" in autotune/cost/constants.json)."""


@functools.cache
def known_networks() -> dict[str, Network]:
    """All networks with a file in `data/networks`, by name."""
    return files.shipped(Network, "networks")


def network_named(name: str) -> Network:
    """The network of that name, or of the file at that path. Raises InputError."""
    return files.named(Network, name, known_networks(), what="network")


def usual_network(device: Device) -> Network | None:
    """The network that nodes of the device usually have; None where that is not known."""
    return None if device.network is None else network_named(device.network)
