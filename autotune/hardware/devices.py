"""What is known of a device: kind, memory, peak. An unknown device has nulls, never a guess."""

import functools
import importlib.resources
import json
from typing import Literal

from pydantic.dataclasses import dataclass

from autotune.errors import InputError, validated


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Device:
    """One accelerator (or the share of a CPU that stands in for one)."""

    name: str
    """Lower-case name, as in devices.json."""
    kind: Literal["gpu", "cpu"]
    """What the workers drive: CUDA and NCCL, or CPU and gloo."""
    memory_gib: float | None
    """Memory per device, null where it is not known."""
    peak_bf16_tflops: float | None
    """Dense bf16 peak in TFLOP/s, null where it is not known."""
    attention_kernels: tuple[str, ...]
    """What can compute attention there (flash_attn only where it is installed)."""
    ray_accelerator_types: tuple[str, ...] = ()
    """Ray's names for it (resource `accelerator_type:NAME`)."""
    source: str
    """Where the figures come from."""


@functools.cache
def known_devices() -> dict[str, Device]:
    """All devices of devices.json by name."""
    text = (importlib.resources.files(__package__) / "devices.json").read_text(encoding="utf-8")
    return {
        name: validated(Device, {"name": name, **fields}, what=f"device {name}")
        for name, fields in json.loads(text).items()
    }


def device_of_accelerator(accelerator: str) -> Device:
    """The device that Ray calls so; with nulls where we do not know it."""
    for device in known_devices().values():
        if accelerator in device.ray_accelerator_types:
            return device
    return unknown_gpu(accelerator)


def unknown_gpu(name: str) -> Device:
    """A GPU of which nothing is known."""
    return Device(
        name=name,
        kind="gpu",
        memory_gib=None,
        peak_bf16_tflops=None,
        attention_kernels=("math", "sdpa_flash", "sdpa_cudnn", "flash_attn"),
        source="not among the known devices",
    )


def device_named(name: str) -> Device:
    """The device of that name. Raises InputError that lists the known ones."""
    devices = known_devices()
    if name not in devices:
        raise InputError(f"device must be one of {', '.join(devices)}, got {name!r}")
    return devices[name]
