"""Devices as sourced data."""

from autotune.hardware.devices import (
    Device,
    device_named,
    device_of_accelerator,
    known_devices,
    unknown_gpu,
)

__all__ = ["Device", "device_named", "device_of_accelerator", "known_devices", "unknown_gpu"]
