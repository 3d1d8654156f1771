"""What the user asked for, frozen: the same request with the same answers makes the same search."""

from collections.abc import Mapping
from typing import Annotated, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.cost.constants import Trainer
from autotune.layout import Layout
from autotune.model import PositiveInt
from autotune.space import SearchSpace

TrainableName = Literal["deepspeed", "simulated", "replay", "fake"]


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
    training_gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Device hours of the training run that the layout is for; None: 20 tokens per parameter."""
    reduced_trials: bool = True
    """Whether layouts are explored by fewer micro-batches per step where that is much cheaper."""
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
    runs: str | None = None
    """Recorded runs to replay; None: none are."""
    layouts: tuple[Layout, ...] | None = None
    """The only layouts to be tried; None: all of the space."""

    @property
    def simulated(self) -> bool:
        """Whether trials only pretend to train."""
        return self.trainable != "deepspeed"

    @property
    def trainer(self) -> Trainer:
        """Whose code the cost model describes."""
        return "hagemann2023" if self.trainable == "replay" else "deepspeed_llm"

    def all_layouts(self) -> list[Layout]:
        """Every layout that may be tried."""
        return self.space.layouts() if self.layouts is None else list(self.layouts)


def request_from_json(values: object) -> Request:
    """Read a stored request. Raises pydantic.ValidationError."""
    return pydantic.TypeAdapter(Request).validate_python(values)
