"""Devices as sourced data, one file each."""

from autotune.hardware.devices import (
    AttentionKernel,
    Device,
    Measured,
    Stated,
    device_from_json,
    device_named,
    device_of_accelerator,
    device_to_json,
    known_devices,
    unknown_gpu,
)

device = device_named
"""The name of `device_named` in the public surface, `autotune.device`."""

__all__ = [
    "AttentionKernel",
    "Device",
    "Measured",
    "Stated",
    "device",
    "device_from_json",
    "device_named",
    "device_of_accelerator",
    "device_to_json",
    "known_devices",
    "unknown_gpu",
]
