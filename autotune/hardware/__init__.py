"""Devices as sourced data."""

from autotune.hardware.devices import Device, device_named, known_devices

__all__ = ["Device", "device_named", "known_devices"]
