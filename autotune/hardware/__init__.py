"""Data of devices and networks, one JSON file each, with the source of every figure."""

from autotune.hardware.constants import Kind, Measured, Stated
from autotune.hardware.devices import (
    AttentionKernel,
    Device,
    device_from_json,
    device_named,
    device_of_accelerator,
    device_to_json,
    known_devices,
    unknown_gpu,
)
from autotune.hardware.networks import (
    Network,
    known_networks,
    network_named,
    network_to_json,
    usual_network,
)

device = device_named
"""Public name of `device_named`: `autotune.device`."""

__all__ = [
    "AttentionKernel",
    "Device",
    "Kind",
    "Measured",
    "Network",
    "Stated",
    "device",
    "device_from_json",
    "device_named",
    "device_of_accelerator",
    "device_to_json",
    "known_devices",
    "known_networks",
    "network_named",
    "network_to_json",
    "unknown_gpu",
    "usual_network",
]
