"""What the user asked for, frozen: the same request with the same answers makes the same search."""

from collections.abc import Mapping
from typing import Annotated, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.model import PositiveInt
from autotune.space import SearchSpace

TrainableName = Literal["deepspeed", "fake"]


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Request:
    """One search, from its first trial to its last, over all resumptions."""

    space: SearchSpace
    """What is searched, with every restriction of the command line applied."""
    trainable: TrainableName
    """What runs the trials."""
    search: str
    """What chooses them."""
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    """Seed of the search, the weights and synthetic tokens."""
    max_trials: PositiveInt
    """Finished exploring trials after which the search ends."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Device hours after which no trial is started; None: no limit."""
    stop_factor: Annotated[float, Field(ge=1)] = 2.0
    """A layout slower than this many times the best is stopped."""
    trial_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """A trial that takes longer is ended."""
    data: str | None = None
    """File or folder of text; None: the sources of Python's library."""
    synthetic_data: bool = False
    """Random tokens instead of text."""
    env: Mapping[str, str] = pydantic.Field(default_factory=dict)
    """Environment of the ranks."""


def request_from_json(values: object) -> Request:
    """Read a stored request. Raises pydantic.ValidationError."""
    return pydantic.TypeAdapter(Request).validate_python(values)
