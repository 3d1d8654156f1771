"""The global gradient norm and clipping by it, without waiting for the device.

DeepSpeed's own converts every gradient to fp64 on the way (8 bytes per element of the largest
weight) and asks the device three times per step whether a number is infinite. This one reads the
fp32 gradients that the optimiser is about to use, once.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from autotune.trial.deepspeed_config import GRADIENT_CLIPPING

# On CPUs the norm is taken in fp64, of this many elements at a time.
_FP64_ELEMENTS = 2**20


class ClippedNorm:
    """Computes the norm and clips at the beginning of every optimiser step."""

    def __init__(self, optimizer: torch.optim.Optimizer, model_parallel: dist.ProcessGroup) -> None:
        """`model_parallel` holds the ranks that share one replica's parameters."""
        self.value: Tensor | None = None
        """The norm before clipping, on the device; None before the first step."""
        self._model_parallel = model_parallel
        self._counted: list[tuple[int, int]] | None = None
        optimizer.register_step_pre_hook(self._clip)

    def count_shard_of(self, zero_optimizer: Any) -> None:
        """Say that the gradient is ZeRO's flat shard of DeepSpeed 0.19's stage 1 and 2 optimiser.

        Of a weight that all tensor-parallel ranks hold only the first one's gradient counts, so the
        others leave out where it lies in the shard.
        """
        rank = dist.get_rank(group=zero_optimizer.real_dp_process_group[0])
        size = int(zero_optimizer.partition_size[0])
        self._counted = counted_ranges(
            zero_optimizer.round_robin_bit16_groups[0],
            zero_optimizer.round_robin_bit16_offsets[0],
            first=rank * size,
            size=size,
        )

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if self._counted is None:
            own = [p.grad for p in parameters if p.model_parallel]
            squares = _sum_of_squares(own, parameters[0].device)
            dist.all_reduce(squares, group=self._model_parallel)
        else:
            (flat,) = parameters
            own = [flat.grad[start:end] for start, end in self._counted]
            squares = _sum_of_squares(own, flat.device)
            dist.all_reduce(squares)  # shards of all replicas, too
        self.value = squares.sqrt()
        coefficient = (GRADIENT_CLIPPING / (self.value + 1e-6)).clamp(max=1.0)
        for parameter in parameters:
            parameter.grad.mul_(coefficient)


def counted_ranges(
    parameters: list[Tensor], offsets: list[int], *, first: int, size: int
) -> list[tuple[int, int]]:
    """Where the elements lie in the shard [first, first + size) that this rank counts.

    `offsets` say where each parameter begins in the flat whole; neighbours become one range.
    """
    ranges: list[tuple[int, int]] = []
    for parameter, offset in zip(parameters, offsets, strict=True):
        start = max(offset, first) - first
        end = min(offset + parameter.numel(), first + size) - first
        if not parameter.model_parallel or start >= end:  # type: ignore[attr-defined]
            continue
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, end))
    return ranges


def _sum_of_squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """In fp32 on GPUs; on CPUs such a norm is off in its fifth digit, so in fp64."""
    if not tensors:
        return torch.zeros((), device=device)
    if device.type == "cuda":
        return torch.nn.utils.get_total_norm(tensors).square()
    parts = [part for tensor in tensors for part in tensor.view(-1).split(_FP64_ELEMENTS)]
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    return torch.stack(norms).square().sum().float()
