"""Figures of links within a node and of the network between nodes, one JSON file each.

They are separate from those of devices, because nodes with the same GPU have different networks.
"""

import functools
import json
from typing import Annotated

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.hardware import files
from autotune.hardware.constants import ConstantsOfFile
from autotune.hardware.devices import Device
from autotune.inputs import Name, PositiveFloat, PositiveInt

_BITS = 8


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Network:
    """The links of a node's devices, and the network between nodes: nominal figures.

    What collectives reach of these figures is in `constants`.
    """

    name: Name
    """Lower-case name, the same as the file's."""
    source: str
    """Where the figures come from."""
    link_gb_per_second: PositiveFloat
    """Bandwidth of a device to the others of its link domain, in one direction."""
    link_domain: PositiveInt | None = None
    """Devices that are joined by such links (72 in a GB200 NVL72 rack); null: those of a node."""
    nic_gbit_per_second: PositiveFloat
    """Line rate of a network card in Gb/s, in one direction."""
    nics_per_node: PositiveInt | None = None
    """Network cards of a node that its devices share; null: one per device."""
    oversubscription: Annotated[float, Field(strict=True, ge=1, le=1000)] = 1.0
    """Bandwidth of a node's network cards over what the switches carry for it when all nodes send;
    1 is a non-blocking network."""
    constants: ConstantsOfFile = Field(default_factory=dict)
    """Constants of the cost model (those "of": "network" in autotune/cost/data/constants.json)."""

    def node_gb_per_second(self, devices_per_node: int) -> float:
        """Nominal bandwidth between nodes of one node in GB/s, in one direction."""
        cards = self.nics_per_node or devices_per_node
        return cards * self.nic_gbit_per_second / _BITS / self.oversubscription


@functools.cache
def known_networks() -> dict[str, Network]:
    """All networks with a file in `data/networks`, by name."""
    return files.shipped(Network, "networks")


def network_named(name: str) -> Network:
    """The network of that name, or of the file at that path. Raises InputError."""
    return files.named(Network, name, known_networks(), what="network")


def usual_network(device: Device) -> Network:
    """The network that nodes of the device usually have; an assumed one where that is not known."""
    return network_named(device.network or "assumed")


def network_to_json(network: Network) -> str:
    """The file of a network; `network_named` reads it back equal."""
    fields = pydantic.TypeAdapter(Network).dump_python(network, mode="json")
    return json.dumps(fields, indent=2) + "\n"
