"""Blocks of each pipeline stage, and the micro-batches in flight there."""

import dataclasses
import functools
from typing import Literal

import numpy as np

from autotune.cost.columns import Array, Columns
from autotune.model import Model

Partition = Literal["blocks", "parameters"]
"""How layers are distributed over stages: equal numbers of blocks, or of parameters, embeddings
included (DeepSpeed's `partition_method`)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Some stages of each layout, arrays [n, s]; usually the first, the second and the last."""

    blocks: Array
    """Transformer blocks."""
    embedding: Array
    """1 on the first stage."""
    head: Array
    """1 on the last stage."""
    in_flight: Array
    """Most micro-batches whose activations the stage holds at once (1F1B): the stages from here to
    the last, at most the micro-batches of the step (Narayanan et al. 2021, arXiv 2104.04473,
    section 2)."""
    neighbours: Array
    """Number of neighbouring stages that activations are exchanged with."""


def stages_of(columns: Columns, model: Model, partition: Partition) -> Stages:
    """The first, the second and the last stage of every layout, [n, 3].

    One of these has the peak memory: the stages between have at most as many blocks as the second,
    and fewer micro-batches in flight. Layouts with fewer stages repeat one.
    """
    sizes = columns.pipeline_parallel.astype(int)
    indices = np.stack([np.zeros_like(sizes), np.minimum(1, sizes - 1), sizes - 1], axis=1)
    return _stages_at(indices, columns, model, partition)


def one_stage(columns: Columns, model: Model, partition: Partition, stage: int) -> Stages:
    """That stage (from 0) of every layout, [n, 1]; each must have as many."""
    indices = np.full((len(columns), 1), stage)
    return _stages_at(indices, columns, model, partition)


def _stages_at(indices: Array, columns: Columns, model: Model, partition: Partition) -> Stages:
    sizes = columns.pipeline_parallel.astype(int)
    blocks = np.zeros(indices.shape)
    for size in np.unique(sizes):
        per_stage = np.array(blocks_per_stage(model, int(size), partition), dtype=float)
        blocks[sizes == size] = per_stage[indices[sizes == size]]
    first = (indices == 0).astype(float)
    last = (indices == sizes[:, None] - 1).astype(float)
    return Stages(
        blocks=blocks,
        embedding=first,
        head=last,
        in_flight=np.minimum(sizes[:, None] - indices, columns.micro_batches[:, None]),
        neighbours=2 - first - last,
    )


@functools.cache
def blocks_per_stage(model: Model, stages: int, partition: Partition) -> tuple[int, ...]:
    """Blocks of each stage; a remainder goes to the first stages."""
    if partition == "blocks" or stages == 1:
        base, extra = divmod(model.num_hidden_layers, stages)
        return tuple(base + (stage < extra) for stage in range(stages))
    embedding = model.vocab_size * model.hidden_size / model.layer_parameters
    layers = [embedding, *[1.0] * model.num_hidden_layers, embedding]
    sizes = _balanced(layers, stages)
    sizes[0] -= 1
    sizes[-1] -= 1
    return tuple(sizes)


def _balanced(weights: list[float], parts: int) -> list[int]:
    """Sizes of `parts` contiguous parts that minimise the weight of the heaviest part.

    The first part is as long as that weight allows; the rest is partitioned in the same way.
    """
    sizes = []
    for parts_left in range(parts, 1, -1):
        totals = np.concatenate(([0.0], np.cumsum(weights)))
        bottleneck = _smallest_bottleneck(totals, parts_left)
        sizes.append(_longest_prefix(totals, 0, bottleneck, parts_after=parts_left - 1))
        weights = weights[sizes[-1] :]
    return [*sizes, len(weights)]


def _smallest_bottleneck(totals: Array, parts: int) -> float:
    """Smallest possible weight of the heaviest part, by bisection over all contiguous sums."""
    sums = np.unique(np.round(totals[:, None] - totals[None, :], 9))
    low, high = 0, len(sums) - 1
    while low < high:
        middle = (low + high) // 2
        start = 0
        for part in range(parts):
            start = _longest_prefix(totals, start, sums[middle], parts_after=parts - part - 1)
        low, high = (low, middle) if start == len(totals) - 1 else (middle + 1, high)
    return float(sums[low])


def _longest_prefix(totals: Array, start: int, limit: float, *, parts_after: int) -> int:
    """End of the longest part from `start` of weight <= `limit`; each later part keeps one item."""
    end = int(np.searchsorted(totals, totals[start] + limit + 1e-6, side="right")) - 1
    return min(end, len(totals) - 1 - parts_after)
