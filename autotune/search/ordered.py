"""Searches with an order fixed at the start: grid, random, and rules. Results do not change it."""

import dataclasses
import random
from collections.abc import Iterable, Sequence

from autotune.layout import Layout
from autotune.search.candidates import Candidates
from autotune.search.prior import Prediction, Prior
from autotune.search.protocol import NOTHING_LEFT, Observation

# Fastest first, by the paper's figures and the kernels' publications.
_KERNELS = (
    "flash_attn_4",
    "flash_attn",
    "flash2",
    "sdpa_cudnn",
    "sdpa_flash",
    "flash1",
    "megatron",
    "math",
)
_ZERO_STAGES = (1, 2, 3, 0)


class OrderedSearch:
    """Proposes layouts in a given order. A `Search`."""

    stopped_because = NOTHING_LEFT

    def __init__(self, layouts: Sequence[Layout], prior: Prior | None = None) -> None:
        self._candidates = Candidates(layouts)
        self._prior = prior

    def ask(self) -> Layout | None:
        """The next layout in the order."""
        layout = self._candidates.first()
        if layout is not None:
            self._candidates.remove([layout])
        return layout

    def tell(self, observation: Observation) -> None:
        """Remove the layout from the candidates; nothing is learned."""
        self._candidates.remove([observation.layout])

    def discard(self, layouts: Iterable[Layout]) -> None:
        """Never propose these."""
        self._candidates.remove(layouts)

    def prediction(self, layout: Layout) -> Prediction | None:
        """The cost model's prediction, without corrections."""
        return None if self._prior is None else self._prior.prediction(layout)


def in_random_order(layouts: Sequence[Layout], seed: int) -> list[Layout]:
    """The layouts in random order, by the seed."""
    return random.Random(seed).sample(layouts, len(layouts))


def in_order_of_advice(layouts: Sequence[Layout], seed: int) -> list[Layout]:
    """The layouts in the order that Hagemann et al. 2023 recommend; ties in random order.

    Fastest kernels first, then ZeRO 1 (which they used), no checkpointing, sequence parallelism,
    small micro-batches, few ranks per replica, and pipeline rather than tensor parallelism.
    """
    offered = set(layouts)

    def advice(layout: Layout) -> tuple[int, ...]:
        could_shard = layout.tensor_parallel > 1 and not layout.sequence_parallel
        sharded = dataclasses.replace(layout, sequence_parallel=could_shard)
        return (
            _KERNELS.index(layout.attention_kernel),
            layout.rmsnorm_kernel == "plain",
            layout.torch_compile,
            _ZERO_STAGES.index(layout.zero_stage),
            layout.recomputes,
            could_shard and sharded in offered,
            layout.micro_batch_size,
            layout.tensor_parallel * layout.pipeline_parallel,
            layout.tensor_parallel,
        )

    return sorted(in_random_order(layouts, seed), key=advice)
