"""What a launcher such as torchrun tells this process by environment variables. Free of torch."""

import os
from typing import Annotated

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.errors import InputError
from autotune.inputs import LARGEST_COUNT, first_problem, listed

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# These make the process one rank of several. The others are also set for other purposes.
_OF_ONE_RANK = frozenset({"RANK", "LOCAL_RANK"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """The place of this process among those that a launcher started."""

    rank: Annotated[int, Field(alias="RANK", ge=0, le=LARGEST_COUNT)]
    local_rank: Annotated[int, Field(alias="LOCAL_RANK", ge=0, le=LARGEST_COUNT)]
    world_size: Annotated[int, Field(alias="WORLD_SIZE", ge=1, le=LARGEST_COUNT)]
    master_addr: Annotated[str, Field(alias="MASTER_ADDR", min_length=1)]
    master_port: Annotated[int, Field(alias="MASTER_PORT", ge=1, le=65535)]
    local_world_size: Annotated[
        int | None, Field(alias="LOCAL_WORLD_SIZE", ge=1, le=LARGEST_COUNT)
    ] = None
    """Not every launcher tells it."""


def launched() -> Launched | None:
    """This process as a launcher started it; None: it was started by itself. Raises InputError."""
    given = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if not _OF_ONE_RANK & given.keys():
        return None
    if missing := [name for name in _VARIABLES if name not in given]:
        raise InputError(
            f"torchrun sets {listed(_VARIABLES)}: {listed(missing)} must be set too, or "
            f"{listed(sorted(_OF_ONE_RANK & given.keys()))} unset"
        )
    if "LOCAL_WORLD_SIZE" in os.environ:
        given["LOCAL_WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"]
    try:
        place = pydantic.TypeAdapter(Launched).validate_python(given)
    except pydantic.ValidationError as error:
        raise InputError(f"environment: {first_problem(error)}") from None
    _refuse_not_below("RANK", place.rank, "WORLD_SIZE", place.world_size)
    _refuse_not_below(
        "LOCAL_RANK",
        place.local_rank,
        "WORLD_SIZE" if place.local_world_size is None else "LOCAL_WORLD_SIZE",
        place.local_world_size or place.world_size,
    )
    return place


def _refuse_not_below(name: str, value: int, limit: str, bound: int) -> None:
    if value >= bound:
        raise InputError(f"environment: {name} must be below {limit} {bound}, got {value}")
