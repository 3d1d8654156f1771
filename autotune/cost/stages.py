"""What each pipeline stage holds, and how many micro-batches are in flight there."""

import dataclasses
import functools
from typing import Literal

import numpy as np

from autotune.cost.columns import Array, Columns
from autotune.model import Model

Partition = Literal["blocks", "parameters"]
"""How layers are dealt to stages: equal numbers of blocks, or equal numbers of parameters with the
embeddings counted (DeepSpeed's `partition_method`)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Arrays [n, 3]: the first, the second and the last stage of each layout.

    No other stage is ever the worst: those between have at most the second's blocks, and fewer
    micro-batches in flight. A layout with fewer stages repeats one.
    """

    blocks: Array
    """Transformer blocks."""
    embedding: Array
    """1 on the first stage."""
    head: Array
    """1 on the last stage."""
    in_flight: Array
    """Micro-batches whose activations are held at the worst moment of 1F1B: the stages from here to
    the end, but never more than there are (Narayanan et al. 2021, arXiv 2104.04473, section 2)."""
    neighbours: Array
    """Stages that activations are exchanged with."""


def stages_of(columns: Columns, model: Model, partition: Partition) -> Stages:
    """The stages of every layout."""
    sizes = columns.pipeline_parallel.astype(int)
    places = np.stack([np.zeros_like(sizes), np.minimum(1, sizes - 1), sizes - 1], axis=1)
    blocks = np.zeros(places.shape)
    for size in np.unique(sizes):
        dealt = np.array(blocks_per_stage(model, int(size), partition), dtype=float)
        blocks[sizes == size] = dealt[[0, min(1, size - 1), size - 1]]
    first = (places == 0).astype(float)
    last = (places == sizes[:, None] - 1).astype(float)
    return Stages(
        blocks=blocks,
        embedding=first,
        head=last,
        in_flight=np.minimum(sizes[:, None] - places, columns.micro_batches[:, None]),
        neighbours=2 - first - last,
    )


@functools.cache
def blocks_per_stage(model: Model, stages: int, partition: Partition) -> tuple[int, ...]:
    """How many blocks each stage gets; extra ones go to the first stages."""
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
    """Sizes of contiguous parts whose heaviest is as light as can be.

    The first part takes all it can; the others share the rest in the same way.
    """
    sizes = []
    for left in range(parts, 1, -1):
        totals = np.concatenate(([0.0], np.cumsum(weights)))
        most = _lightest_bottleneck(totals, left)
        sizes.append(_longest_prefix(totals, 0, most, parts_after=left - 1))
        weights = weights[sizes[-1] :]
    return [*sizes, len(weights)]


def _lightest_bottleneck(totals: Array, parts: int) -> float:
    """The smallest weight of the heaviest part; it is the weight of some contiguous run."""
    sums = np.unique(np.round(totals[:, None] - totals[None, :], 9))
    low, high = 0, len(sums) - 1
    while low < high:
        middle = (low + high) // 2
        start = 0
        for part in range(parts):
            start = _longest_prefix(totals, start, sums[middle], parts_after=parts - part - 1)
        low, high = (low, middle) if start == len(totals) - 1 else (middle + 1, high)
    return float(sums[low])


def _longest_prefix(totals: Array, start: int, most: float, *, parts_after: int) -> int:
    """Where a part from `start` ends that weighs at most `most` and leaves something for others."""
    end = int(np.searchsorted(totals, totals[start] + most + 1e-6, side="right")) - 1
    return min(end, len(totals) - 1 - parts_after)
