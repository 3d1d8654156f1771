"""Figures of devices, one JSON file each. Unknown figures are null, never guessed."""

import functools
import json
from collections.abc import Mapping
from typing import Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.hardware import files
from autotune.hardware.constants import ConstantsOfFile
from autotune.inputs import Name, PositiveFloat, PositiveInt, validated

AttentionKernel = Literal[
    "math",
    "sdpa_flash",
    "sdpa_cudnn",
    "flash_attn",
    "flash_attn_4",
    "megatron",
    "flash1",
    "flash2",
]
"""Implementations of attention. The last three occur only in recorded runs: Megatron's fused
softmax and the two FlashAttention versions of 2023."""


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Device:
    """One accelerator, or a virtual device: the share of a CPU that runs one rank."""

    name: Name
    """Lower-case name, the same as the file's."""
    kind: Literal["gpu", "cpu"]
    """Backend of the workers: CUDA and NCCL, or CPU and gloo."""
    memory_gib: PositiveFloat | None
    """Memory per device; null where it is unknown."""
    peak_bf16_tflops: PositiveFloat | None
    """Dense bf16 peak in TFLOP/s; null where it is unknown."""
    peak_fp32_tflops: PositiveFloat | None = None
    """Peak of fp32 training in TFLOP/s; null where it is unknown."""
    memory_gb_per_second: PositiveFloat | None = None
    """Memory bandwidth of the device; null where it is unknown."""
    multiprocessors: PositiveInt | None = None
    """Units that each compute one tile of a matrix product (SMs); null where it is unknown."""
    attention_kernels: tuple[AttentionKernel, ...]
    """Attention kernels that the device supports (flash_attn, flash_attn_4: if installed)."""
    ray_accelerator_types: tuple[str, ...] = ()
    """Ray's names for the device (resource `accelerator_type:NAME`)."""
    source: str
    """Where the figures come from."""
    network: Name | None = None
    """The network that nodes of this device usually have (`autotune.hardware.networks`)."""
    constants: ConstantsOfFile = Field(default_factory=dict)
    """Constants of the cost model on this device, for every trainer."""
    trainers: Mapping[str, ConstantsOfFile] = Field(default_factory=dict)
    """Constants of the cost model on this device, by trainer."""


@functools.cache
def known_devices() -> dict[str, Device]:
    """All devices with a file in `data/devices`, by name."""
    return files.shipped(Device, "devices")


def device_from_json(text: str, *, what: str) -> Device:
    """Read a hardware file. Raises InputError."""
    return files.from_json(Device, text, what=what)


def device_of_accelerator(accelerator: str) -> Device:
    """The device with that Ray accelerator type; an unknown GPU where no file has it."""
    for device in known_devices().values():
        if accelerator in device.ray_accelerator_types:
            return device
    return unknown_gpu(accelerator)


def unknown_gpu(name: str) -> Device:
    """A GPU whose figures are all null. Raises InputError for an invalid name."""
    fields = {
        "name": name,
        "kind": "gpu",
        "memory_gib": None,
        "peak_bf16_tflops": None,
        "attention_kernels": ("math", "sdpa_flash", "sdpa_cudnn", "flash_attn", "flash_attn_4"),
        "source": "not among the known devices",
    }
    return validated(Device, fields, what="device")


def device_named(name: str) -> Device:
    """The device of that name, or of the hardware file at that path. Raises InputError."""
    return files.named(Device, name, known_devices(), what="device")


def device_to_json(device: Device) -> str:
    """The hardware file of a device; `device_from_json` reads it back equal."""
    fields = pydantic.TypeAdapter(Device).dump_python(device, mode="json")
    return json.dumps(fields, indent=2) + "\n"
