"""Constants of the cost model in hardware files, each with its source."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

Kind = Literal["stated", "fitted", "assumed"]
"""Origin of a value: a data sheet or direct measurement, a fit to runs, or an assumption."""

# Older hardware files and run.json have no `kind`: it is derived from how their sources begin.
_KIND_OF_OLD_SOURCES: dict[str, Kind] = {"fitted on": "fitted", "assumed": "assumed"}


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Stated:
    """The value of a constant of autotune/cost/data/constants.json, and its source."""

    value: Annotated[float, Field(strict=True, ge=0, le=1e9)]
    kind: Kind
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Measured(Stated):
    """A constant; if it was fitted, also the value that the fit replaced."""

    unfitted: Stated | None = None
    """The value that the fit replaced; null where there was none."""


# Constants of a law that version 0.2 replaced by the nominal figures of a network's file.
_RETIRED = frozenset(
    {"link_gb_per_second", "network_gb_per_second", "stage_gb_per_second"}
    | {"network_tensor_exponent", "network_nodes_exponent", "network_devices_exponent"}
)


def _as_of_today(constants: Any) -> Any:
    """The constants of an older file: each with a `kind`, and without those that were retired."""
    if not isinstance(constants, Mapping):
        return constants
    return {
        name: _with_kind(constant) for name, constant in constants.items() if name not in _RETIRED
    }


def _with_kind(constant: Any) -> Any:
    if not isinstance(constant, Mapping) or "kind" in constant or "source" not in constant:
        return constant
    source = str(constant["source"])
    kinds = (kind for start, kind in _KIND_OF_OLD_SOURCES.items() if source.startswith(start))
    unfitted = {"unfitted": _with_kind(constant["unfitted"])} if "unfitted" in constant else {}
    return {**constant, "kind": next(kinds, "stated"), **unfitted}


ConstantsOfFile = Annotated[Mapping[str, Measured], BeforeValidator(_as_of_today)]
"""Constants by name, as a hardware file has them."""
