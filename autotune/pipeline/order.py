"""The order of passes on a stage (1F1B), the one in which DeepSpeed runs them."""

from collections.abc import Iterator
from typing import Literal

Pass = tuple[Literal["forward", "backward"], int]
"""A pass and its micro-batch, from 0."""


def passes_of_stage(stage: int, stages: int, micro_batches: int) -> Iterator[Pass]:
    """The passes of a stage (from 0) in order.

    A stage begins with as many forward passes as there are stages from it to the last, then it
    alternates, so that it never holds the activations of more micro-batches (Narayanan et al. 2021,
    arXiv 2104.04473, section 2).
    """
    ahead = min(stages - stage, micro_batches)
    yield from (("forward", micro_batch) for micro_batch in range(ahead))
    for micro_batch in range(micro_batches):
        yield "backward", micro_batch
        if micro_batch + ahead < micro_batches:
            yield "forward", micro_batch + ahead
