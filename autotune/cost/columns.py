"""Layouts as arrays, so that thousands are estimated in one go."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.layout import Layout

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """One array of length n per dimension; flags are 0 or 1."""

    tensor_parallel: Array
    pipeline_parallel: Array
    data_parallel: Array
    zero_stage: Array
    micro_batch_size: Array
    micro_batches: Array
    """Gradient accumulation steps: micro-batches of a step through each replica."""
    recompute_attention: Array
    """1 for selective and for full activation checkpointing."""
    recompute_block: Array
    """1 for full activation checkpointing."""
    sequence_shards: Array
    """Tensor-parallel size with sequence parallelism, else 1."""
    plain_norm: Array
    """1 where RMSNorm is written out instead of one operation."""
    compiled: Array
    kernels: tuple[str, ...]
    """The attention kernels of all layouts, each once."""
    kernel: NDArray[np.int64]
    """Each layout's place in `kernels`."""

    def __len__(self) -> int:
        return len(self.tensor_parallel)

    def of_kernel(self, constants: Mapping[str, float], name: str) -> Array:
        """The constant `name` of each layout's attention kernel."""
        values = np.array([constants[f"attention.{kernel}.{name}"] for kernel in self.kernels])
        return values[self.kernel]


def columns_of(layouts: Sequence[Layout]) -> Columns:
    """Arrays in the order of `layouts`."""
    recomputed = [layout.activation_checkpointing for layout in layouts]

    kernels, kernel = np.unique(
        [layout.attention_kernel for layout in layouts], return_inverse=True
    )

    def column(values: Sequence[float]) -> Array:
        return np.array(values, dtype=np.float64)

    return Columns(
        tensor_parallel=column([layout.tensor_parallel for layout in layouts]),
        pipeline_parallel=column([layout.pipeline_parallel for layout in layouts]),
        data_parallel=column([layout.data_parallel for layout in layouts]),
        zero_stage=column([layout.zero_stage for layout in layouts]),
        micro_batch_size=column([layout.micro_batch_size for layout in layouts]),
        micro_batches=column([layout.gradient_accumulation_steps for layout in layouts]),
        recompute_attention=column([value != "none" for value in recomputed]),
        recompute_block=column([value == "full" for value in recomputed]),
        sequence_shards=column(
            [layout.tensor_parallel if layout.sequence_parallel else 1 for layout in layouts]
        ),
        plain_norm=column([layout.rmsnorm_kernel == "plain" for layout in layouts]),
        compiled=column([layout.torch_compile for layout in layouts]),
        kernels=tuple(map(str, kernels)),
        kernel=kernel,
    )


def total_of(parts: Any) -> Array:
    """The sum over the fields of a dataclass of arrays."""
    fields = dataclasses.fields(parts)
    total: Array = np.sum([getattr(parts, field.name) for field in fields], axis=0)
    return total
