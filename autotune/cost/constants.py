"""Empirical constants of the cost model's formulas, by name.

`data/constants.json` lists them all with unit, meaning and default value. The files of a trainer,
a network and a device override them (`autotune.cost.trainers.constants_for`). Each attention kernel
has its own constants, named `attention.KERNEL.CONSTANT`.
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any, Literal

from autotune.inputs import LARGEST_AMOUNT, SMALLEST_AMOUNT

Constants = Mapping[str, float]
"""Values by name."""

# Constants that the formulas divide by.
_DIVISORS = frozenset(
    {"gemm_efficiency", "link_efficiency", "network_efficiency", "stage_efficiency"}
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


def bounds_of(name: str) -> tuple[float, float]:
    """Lower and upper bound of a constant, within which the formulas are defined."""
    if name == "overlap":
        return 0.0, 1.0
    is_divisor = name in _DIVISORS or name.endswith(".efficiency")
    return SMALLEST_AMOUNT if is_divisor else 0.0, LARGEST_AMOUNT


@functools.cache
def _read() -> dict[str, Any]:
    path = importlib.resources.files(__package__) / "data" / "constants.json"
    text = path.read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content
