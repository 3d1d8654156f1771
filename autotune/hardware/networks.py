"""Figures of links within a node and of the network between nodes, one JSON file each.

They are separate from those of devices, because nodes with the same GPU have different networks.
"""

import functools
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.errors import InputError
from autotune.hardware.constants import ConstantsOfFile, described_in
from autotune.hardware.devices import Device
from autotune.inputs import Name, json_object, validated


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
    networks = [network_from_json(text, what=what) for what, text in described_in("networks")]
    return {network.name: network for network in networks}


def network_from_json(text: str, *, what: str) -> Network:
    """Read a network file. Raises InputError."""
    return validated(Network, json_object(text, what=what), what=what)


def network_named(name: str) -> Network:
    """The network of that name, or of the file at that path. Raises InputError."""
    if name.endswith(".json"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"network file {name!r} cannot be read: {error}") from None
        return network_from_json(text, what=f"network file {name!r}")
    networks = known_networks()
    if name not in networks:
        raise InputError(
            f"network must be one of {', '.join(networks)} or a file NAME.json, got {name!r}"
        )
    return networks[name]


def usual_network(device: Device) -> Network | None:
    """The network that nodes of the device usually have; None where that is not known."""
    return None if device.network is None else network_named(device.network)
