"""The pipeline stages that stand for all in the time of a step."""

import dataclasses

import numpy as np

from autotune.cost.columns import Array, Columns
from autotune.cost.stages import Partition, blocks_per_stage
from autotune.model import Model


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TimedStages:
    """Arrays [4, n]: the stages that a step may take as long as: the first, the last of those that
    have as many blocks as the second, the last but one, and the last.

    Layouts with fewer stages repeat one.
    """

    index: Array
    """From 0."""
    head: Array
    """1 on the last stage."""
    blocks: Array
    """Transformer blocks."""
    blocks_before: Array
    """Transformer blocks of all stages before."""
    blocks_alike: Array
    """Transformer blocks of those stages after that have all micro-batches of the step in flight
    before their first backward pass, as the stage itself has."""
    blocks_after: Array
    """Transformer blocks of all stages after."""

    @property
    def neighbours(self) -> Array:
        """Number of neighbouring stages that activations are exchanged with."""
        found: Array = 2.0 - (self.index == 0) - self.head
        return found


def timed_stages_of(columns: Columns, model: Model, partition: Partition) -> TimedStages:
    """The stages of every layout that its time is computed from."""
    sizes = columns.pipeline_parallel.astype(int)
    different, which = np.unique(sizes, return_inverse=True)
    by_size, alike = np.zeros((5, 4, len(different))), np.zeros((4, len(sizes)))
    waiting = columns.micro_batches < sizes
    for number, size in enumerate(different):
        per_stage = np.array(blocks_per_stage(model, int(size), partition), dtype=float)
        by_size[:, :, number] = of_size = _of_size(per_stage)
        if (few := waiting & (which == number)).any():
            up_to, places = np.cumsum(per_stage), of_size[0].astype(int)[:, None]
            all_in_flight = np.maximum(size - columns.micro_batches[few].astype(int), places)
            alike[:, few] = up_to[all_in_flight] - up_to[places]
    index, head, blocks, before, after = np.take(by_size, which, axis=2)
    return TimedStages(
        index=index,
        head=head,
        blocks=blocks,
        blocks_before=before,
        blocks_alike=alike,
        blocks_after=after,
    )


def _of_size(blocks: Array) -> Array:
    """For stages with so many blocks [p], of the four: index, head, blocks, and blocks before and
    after [5, 4]."""
    stages = len(blocks)
    second = min(1, stages - 1)
    alike = np.flatnonzero(blocks[: max(stages - 1, 2)] == blocks[second])[-1]
    index = np.array([0, alike, max(stages - 2, 0), stages - 1])
    up_to = np.cumsum(blocks)
    before, after = (up_to - blocks)[index], up_to[-1] - up_to[index]
    return np.stack([index, index == stages - 1, blocks[index], before, after])
