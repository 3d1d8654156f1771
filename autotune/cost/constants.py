"""Empirical constants of the cost model's formulas, by name.

`constants.json` lists them all with unit, meaning and default value. The file of a network
overrides the constants of links and networks. The file of a device overrides those of the device,
and those of a trainer (memory and traffic of its code) for that trainer only. Each attention kernel
has its own constants, named `attention.KERNEL.CONSTANT`.
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any, Literal

from autotune.errors import InputError
from autotune.hardware import Device, Network, usual_network
from autotune.inputs import LARGEST_AMOUNT, SMALLEST_AMOUNT, shown

Constants = Mapping[str, float]
"""Values by name."""

# Constants that the formulas divide by.
_DIVISORS = frozenset(
    {"gemm_efficiency", "link_gb_per_second", "network_gb_per_second", "stage_gb_per_second"}
    | {"usable_memory", "pressure_width", "memory_spread", "time_spread"}
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One constant of the formulas; `constants.json` has its meaning."""

    value: float
    """Default, where nothing was measured or fitted."""
    spread: float
    """Prior standard deviation of its logarithm; a constant with spread 0 is never fitted."""
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
    """The default values of that trainer."""
    values = {name: constant.value for name, constant in known_constants().items()}
    return {**values, **_read()["trainers"].get(trainer, {})}


def constants_for(device: Device, trainer: str, network: Network | None = None) -> Constants:
    """The constants of that trainer on that device and network (None: the device's usual one).

    Constants in the device's file override those of the network: a file that `autotune calibrate`
    writes has constants of both. Raises InputError for unknown names.
    """
    known = known_constants()
    trainers = _read()["trainers"]
    if unknown := device.trainers.keys() - trainers.keys():
        raise InputError(
            f"hardware {device.name}: trainer must be one of {', '.join(sorted(trainers))}, "
            f"got {shown(min(unknown))}"
        )
    values = assumed_constants(trainer)
    links = network or usual_network(device)
    described = [
        (f"hardware {device.name}", device.constants),
        (f"hardware {device.name}", device.trainers.get(trainer, {})),
    ]
    if links is not None:
        described.insert(0, (f"network {links.name}", links.constants))
    for what, constants in described:
        for name, measured in constants.items():
            if name not in known:
                raise InputError(
                    f"{what}: constant must be one of those of constants.json, got {shown(name)}"
                )
            lower, upper = bounds_of(name)
            if not lower <= measured.value <= upper:
                raise InputError(
                    f"{what}: {name} must be from {lower:g} to {upper:g}, got {measured.value:g}"
                )
            values[name] = measured.value
    return values


def bounds_of(name: str) -> tuple[float, float]:
    """Lower and upper bound of a constant, within which the formulas are defined."""
    if name == "overlap":
        return 0.0, 1.0
    if name.endswith("_exponent"):
        return 0.0, 10.0
    is_divisor = name in _DIVISORS or name.endswith(".efficiency")
    return SMALLEST_AMOUNT if is_divisor else 0.0, LARGEST_AMOUNT


@functools.cache
def _read() -> dict[str, Any]:
    text = (importlib.resources.files(__package__) / "constants.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content
