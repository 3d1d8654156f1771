"""The numbers that the formulas take from measurements, by name.

`constants.json` lists them all with unit, meaning, and the value that is assumed where nothing was
measured. The file of a network overrides those of links and networks; the file of a device those of
the device, and those of a trainer (bytes it keeps, traffic it makes) for that trainer alone. An
attention kernel has its own set, named `attention.KERNEL.CONSTANT`.
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any, Literal

from autotune.errors import InputError
from autotune.hardware import Device, Network, usual_network
from autotune.inputs import LARGEST_AMOUNT, SMALLEST_AMOUNT

Constants = Mapping[str, float]
"""Values by name."""

# What the formulas divide by.
_NEVER_ZERO = frozenset(
    {"gemm_efficiency", "link_gb_per_second", "network_gb_per_second", "stage_gb_per_second"}
    | {"usable_memory", "pressure_width", "memory_spread", "time_spread"}
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One number that a formula takes."""

    value: float
    """What is assumed where nothing was measured."""
    spread: float
    """Standard deviation of its logarithm before any measurement; 0 is never fitted."""
    unit: str
    of: Literal["hardware", "network", "trainer"]
    predicts: Literal["time", "memory"]
    meaning: str


@functools.cache
def known_constants() -> dict[str, Constant]:
    """Every constant by its full name."""
    groups = _read()
    kernels = groups["attention"]
    known = {name: Constant(**fields) for name, fields in groups["constants"].items()}
    for kernel, values in kernels["values"].items():
        for name, fields in kernels["constants"].items():
            known[f"attention.{kernel}.{name}"] = Constant(**fields, value=values[name])
    return known


def assumed_constants(trainer: str) -> dict[str, float]:
    """The values where nothing was measured."""
    values = {name: constant.value for name, constant in known_constants().items()}
    return {**values, **_read()["trainers"].get(trainer, {})}


def constants_for(device: Device, trainer: str, network: Network | None = None) -> Constants:
    """The constants of that trainer on that device and network (None: the device's usual one).

    Those in the device's own file are taken before those of the network: a file that
    `autotune calibrate` writes has both. Raises InputError for unknown names.
    """
    known = known_constants()
    trainers = _read()["trainers"]
    if unknown := device.trainers.keys() - trainers.keys():
        raise InputError(
            f"hardware {device.name}: trainer must be one of {', '.join(sorted(trainers))}, "
            f"got {min(unknown)!r}"
        )
    values = assumed_constants(trainer)
    links = network or usual_network(device)
    of_network = {} if links is None else links.constants
    for found in (of_network, device.constants, device.trainers.get(trainer, {})):
        for name, measured in found.items():
            if name not in known:
                raise InputError(
                    f"hardware {device.name}: constant must be one of those of constants.json, "
                    f"got {name!r}"
                )
            least, most = bounds_of(name)
            if not least <= measured.value <= most:
                raise InputError(
                    f"hardware {device.name}: {name} must be from {least:g} to {most:g}, "
                    f"got {measured.value:g}"
                )
            values[name] = measured.value
    return values


def bounds_of(name: str) -> tuple[float, float]:
    """The least and the largest value with which the formulas can compute."""
    if name == "overlap":
        return 0.0, 1.0
    if name.endswith("_exponent"):
        return 0.0, 10.0
    divides = name in _NEVER_ZERO or name.endswith(".efficiency")
    return SMALLEST_AMOUNT if divides else 0.0, LARGEST_AMOUNT


@functools.cache
def _read() -> dict[str, Any]:
    text = (importlib.resources.files(__package__) / "constants.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content
