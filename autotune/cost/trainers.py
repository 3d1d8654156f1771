"""The trainers (training code) that the cost model knows; each has its own constants."""

import dataclasses

from autotune.cost.stages import Partition
from autotune.cost.states import StatesOf, deepspeed_states, recorded_states
from autotune.errors import InputError
from autotune.inputs import shown


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """What the formulas need of a trainer besides its constants."""

    partition: Partition
    """How it distributes layers over pipeline stages."""
    states: StatesOf
    """Memory of its weights, gradients and optimiser states."""


TRAINERS = {
    "deepspeed_llm": Trainer(partition="blocks", states=deepspeed_states),
    # The recorded runs (arXiv 2311.05610). Their partition by parameters is inferred: it explains
    # their step times better than a partition by blocks (DECISIONS.md).
    "hagemann2023": Trainer(partition="parameters", states=recorded_states),
}
"""The DeepSpeed worker (`trainables.deepspeed_llm`) and the code of the recorded runs."""


def trainer_named(name: str) -> Trainer:
    """The trainer of that name. Raises InputError for an unknown name."""
    if name not in TRAINERS:
        raise InputError(f"trainer must be one of {', '.join(TRAINERS)}, got {shown(name)}")
    return TRAINERS[name]
