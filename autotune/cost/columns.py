"""Layouts as arrays, so that thousands are estimated in one go."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.layout import Layout

Array = NDArray[np.float64]

_SIZES = operator.attrgetter(
    "tensor_parallel",
    "pipeline_parallel",
    "data_parallel",
    "zero_stage",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "sequence_parallel",
    "torch_compile",
)
_RECOMPUTED = {"none": 0, "selective": 1, "full": 2}


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
    sizes = np.array([_SIZES(layout) for layout in layouts], dtype=np.float64)
    sizes = sizes.reshape(len(layouts), 8).T
    recomputed = np.array(
        [_RECOMPUTED[layout.activation_checkpointing] for layout in layouts], dtype=float
    )
    kernels = tuple(dict.fromkeys(layout.attention_kernel for layout in layouts))
    places = {kernel: place for place, kernel in enumerate(kernels)}
    tensor, pipeline, data, stage, micro_batch, micro_batches, sharded, compiled = sizes
    return Columns(
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        data_parallel=data,
        zero_stage=stage,
        micro_batch_size=micro_batch,
        micro_batches=micro_batches,
        recompute_attention=(recomputed > 0).astype(float),
        recompute_block=(recomputed > 1).astype(float),
        sequence_shards=np.where(sharded > 0, tensor, 1.0),
        plain_norm=np.array([layout.rmsnorm_kernel == "plain" for layout in layouts], dtype=float),
        compiled=compiled,
        kernels=kernels,
        kernel=np.array([places[layout.attention_kernel] for layout in layouts], dtype=np.int64),
    )


def total_of(parts: Any) -> Array:
    """The sum over the fields of a dataclass of arrays."""
    fields = dataclasses.fields(parts)
    total: Array = np.sum([getattr(parts, field.name) for field in fields], axis=0)
    return total
