"""The trainers whose step the cost model predicts, by the name under which constants are fitted."""

import dataclasses

from autotune.cost.stages import Partition
from autotune.cost.states import StatesOf, deepspeed_states, recorded_states
from autotune.errors import InputError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """What the formulas take from a trainer besides its constants."""

    partition: Partition
    """How it deals layers to pipeline stages."""
    states: StatesOf
    """What it keeps of weights, gradients and optimiser states."""


TRAINERS = {
    "deepspeed_llm": Trainer(partition="blocks", states=deepspeed_states),
    # Of the recorded runs (arXiv 2311.05610). That layers were dealt by parameters is inferred: it
    # explains their step times better than dealing by blocks (DECISIONS.md).
    "hagemann2023": Trainer(partition="parameters", states=recorded_states),
}
"""Ours (`trainables.deepspeed_llm`) and that of the recorded runs."""


def trainer_named(name: str) -> Trainer:
    """Raises InputError for a name that the cost model does not know."""
    if name not in TRAINERS:
        raise InputError(f"trainer must be one of {', '.join(TRAINERS)}, got {name!r}")
    return TRAINERS[name]
