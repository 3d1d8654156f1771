"""The order of passes on a stage (1F1B), the one in which DeepSpeed runs them."""

from collections.abc import Iterator
from typing import Literal

Pass = tuple[Literal["forward", "backward"], int]
"""A pass and its micro-batch, from 0."""


def slots_of_step(stages: int, micro_batches: int) -> int:
    """Slots of a step; in each of them a stage runs at most one pass."""
    return 2 * (micro_batches + stages - 1)


def pass_in_slot(slot: int, stage: int, stages: int, micro_batches: int) -> Pass | None:
    """What a stage (from 0) runs in a slot; None: nothing.

    A micro-batch goes forward through one stage per slot, then back, and the next one follows two
    slots later. So a stage alternates forward and backward slots, its neighbours the other way
    round (DeepSpeed's TrainSchedule).
    """
    forward = (slot - stage) % 2 == 0
    since = slot - (stage if forward else 2 * stages - 1 - stage)
    if not 0 <= since // 2 < micro_batches:
        return None
    return ("forward" if forward else "backward"), since // 2


def passes_of_stage(stage: int, stages: int, micro_batches: int) -> Iterator[Pass]:
    """The passes of a stage (from 0) in order.

    A stage begins with as many forward passes as there are stages from it to the last, then it
    alternates, so that it never holds the activations of more micro-batches (Narayanan et al. 2021,
    arXiv 2104.04473, section 2).
    """
    for slot in range(slots_of_step(stages, micro_batches)):
        if (found := pass_in_slot(slot, stage, stages, micro_batches)) is not None:
            yield found
