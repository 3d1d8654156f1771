"""Constants of the cost model as hardware files give them, each with its source."""

import importlib.resources
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

Kind = Literal["stated", "fitted", "assumed"]
"""From a data sheet or a measurement of its own, fitted to runs, or neither."""

# How sources began before files had a kind: `autotune calibrate` and run.json of those versions.
_KIND_OF_OLD_SOURCES: dict[str, Kind] = {"fitted on": "fitted", "assumed": "assumed"}


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Stated:
    """A constant (autotune/cost/constants.json) and where it comes from."""

    value: Annotated[float, Field(strict=True, ge=0, le=1e9)]
    kind: Kind
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Measured(Stated):
    """The same, perhaps in the place of what was there before a fit."""

    unfitted: Stated | None = None
    """What was here before a fit; null where nothing was."""


def _with_kinds(constants: Any) -> Any:
    """Constants of a file from before they had a kind, with the kind that their source tells."""
    if not isinstance(constants, Mapping):
        return constants
    return {name: _with_kind(constant) for name, constant in constants.items()}


def _with_kind(constant: Any) -> Any:
    if not isinstance(constant, Mapping) or "kind" in constant or "source" not in constant:
        return constant
    source = str(constant["source"])
    kinds = (kind for start, kind in _KIND_OF_OLD_SOURCES.items() if source.startswith(start))
    unfitted = {"unfitted": _with_kind(constant["unfitted"])} if "unfitted" in constant else {}
    return {**constant, "kind": next(kinds, "stated"), **unfitted}


ConstantsOfFile = Annotated[Mapping[str, Measured], BeforeValidator(_with_kinds)]
"""Constants by name."""


def described_in(folder: str) -> Iterator[tuple[str, str]]:
    """The JSON files of a folder of `data`: what to call each in an error, and its text."""
    files = (importlib.resources.files(__package__) / "data" / folder).iterdir()
    for file in sorted(files, key=lambda file: file.name):
        yield f"hardware {file.name}", file.read_text(encoding="utf-8")
