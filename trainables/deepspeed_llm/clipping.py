"""Global gradient norm and gradient clipping, without synchronising with the GPU; and before that,
the sums over tensor-parallel ranks that commute with all else.

DeepSpeed's own clipping converts every gradient to fp64 (8 bytes per element of the largest weight)
and synchronises three times per step to test for infinities. This one reads the fp32 gradients that
the optimiser is about to use, once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainables.deepspeed_llm.tensor_parallel import TensorParallel

# On CPUs the norm is computed in fp64, over chunks of this many elements.
_FP64_ELEMENTS = 2**20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """This rank's shard of one group of parameters, under ZeRO 1 and 2."""

    parameter: Tensor
    """The flat fp32 weights that the optimiser updates."""
    counted: list[tuple[int, int]]
    """Ranges of elements that this rank counts in the norm."""
    partial: list[tuple[int, int]]
    """Ranges of elements of which each tensor-parallel rank has a part of the gradient."""


class ClippedNorm:
    """Computes the global norm and clips the gradients, as a hook before each optimiser step."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model_parallel: dist.ProcessGroup,
        *,
        parallel: TensorParallel,
        largest: float,
    ) -> None:
        """`model_parallel`: process group of the ranks that hold one replica's parameters.
        `parallel`: the tensor-parallel ranks; each has a part of some gradients.
        `largest`: the norm that larger gradients are scaled to; 0: gradients are not clipped."""
        self.value: Tensor | None = None
        """The norm before clipping, on the device; None before the first step."""
        self._model_parallel, self._parallel = model_parallel, parallel
        self._largest = largest
        self._zero: Any = None
        self._shards: list[_Shard] = []
        optimizer.register_step_pre_hook(self._clip)

    def count_shards_of(self, zero_optimizer: Any) -> None:
        """Use the flat gradient shards of DeepSpeed 0.19's ZeRO stage 1 and 2 optimiser.

        Weights that are replicated over tensor-parallel ranks must count once in the norm: the
        first rank counts them, the others skip their positions in the shard.
        """
        self._zero = zero_optimizer
        for index, flat in enumerate(zero_optimizer.single_partition_of_fp32_groups):
            rank = dist.get_rank(group=zero_optimizer.real_dp_process_group[index])
            size = int(zero_optimizer.partition_size[index])
            counted, partial = (
                ranges_of(
                    chosen,
                    zero_optimizer.round_robin_bit16_groups[index],
                    zero_optimizer.round_robin_bit16_offsets[index],
                    first=rank * size,
                    size=size,
                )
                for chosen in (_counts, _is_partial)
            )
            self._shards.append(_Shard(parameter=flat, counted=counted, partial=partial))

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not self._shards:
            self._add_up([p.grad for p in parameters if _is_partial(p)])
            own = [p.grad for p in parameters if _counts(p)]
            squares = _sum_of_squares(own, parameters[0].device)
            dist.all_reduce(squares, group=self._model_parallel)
            self.value = squares.sqrt()
        elif parameters[0] is self._shards[0].parameter:
            gradients = [self._gradients(index) for index in range(len(self._shards))]
            pairs = list(zip(self._shards, gradients, strict=True))
            self._add_up([part for shard, own in pairs for part in _within(own, shard.partial)])
            self.value = self._norm_of_shards(pairs)
        if not self._largest:
            return
        assert self.value is not None
        coefficient = (self._largest / (self.value + 1e-6)).clamp(max=1.0)
        for parameter in parameters:
            parameter.grad.mul_(coefficient)

    def _gradients(self, index: int) -> list[Tensor]:
        """Flat tensors that follow one another in a shard.

        DeepSpeed updates one group after the other. Before the first it has flattened that group's
        gradients only; those of the others, which are few, are a list."""
        flat = self._shards[index].parameter.grad
        if flat is not None:
            return [flat]
        return [part.view(-1) for part in self._zero.averaged_gradients[index]]

    def _norm_of_shards(self, pairs: list[tuple[_Shard, list[Tensor]]]) -> Tensor:
        counted = []
        for shard, gradients in pairs:
            parts = _within(gradients, shard.counted)
            if shard.parameter.grad is None and parts:  # many small ones
                parts = [torch.cat(parts).float()]
            counted += parts
        squares = _sum_of_squares(counted, self._shards[0].parameter.device)
        dist.all_reduce(squares)  # over all replicas too: each holds a shard
        return squares.sqrt()

    def _add_up(self, gradients: list[Tensor]) -> None:
        """Replace gradients by their sums over the tensor-parallel ranks, in one collective.

        All these ranks have the same shards, so that this could wait until replicas and
        micro-batches had been added up."""
        if not gradients:
            return
        flat = [gradient.view(-1) for gradient in gradients]
        sums = self._parallel.all_reduce(torch.cat(flat).float())
        torch._foreach_copy_(flat, sums.split([len(gradient) for gradient in flat]))


def _within(tensors: list[Tensor], ranges: list[tuple[int, int]]) -> list[Tensor]:
    """Views of the ranges (start, end) of flat tensors that follow one another."""
    views, first = [], 0
    for tensor in tensors:
        last = first + len(tensor)
        views += [
            tensor[max(start, first) - first : min(end, last) - first]
            for start, end in ranges
            if start < last and end > first
        ]
        first = last
    return views


def ranges_of(
    chosen: Callable[[Tensor], bool],
    parameters: list[Tensor],
    offsets: list[int],
    *,
    first: int,
    size: int,
) -> list[tuple[int, int]]:
    """Ranges (start, end) of the elements of chosen parameters in the shard [first, first + size).

    `offsets`: where each parameter begins in the flat tensor. Adjacent ranges are merged.
    """
    ranges: list[tuple[int, int]] = []
    for parameter, offset in zip(parameters, offsets, strict=True):
        start = max(offset, first) - first
        end = min(offset + parameter.numel(), first + size) - first
        if not chosen(parameter) or start >= end:
            continue
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, end))
    return ranges


def _counts(parameter: Any) -> bool:
    """Whether this rank counts the parameter: one of those that hold it does.

    DeepSpeed marks tied weights on all pipeline stages but the first.
    """
    return parameter.model_parallel and not getattr(parameter, "ds_pipe_replicated", False)


def _is_partial(parameter: Any) -> bool:
    """Whether each tensor-parallel rank has a part of the gradient (`TensorParallel.partial`)."""
    return bool(parameter.partial)


def _sum_of_squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """In fp32 on GPUs. In fp64 on CPUs, where torch's fp32 norm is wrong in the fifth digit."""
    if not tensors:
        return torch.zeros((), device=device)
    if device.type == "cuda":
        return torch.nn.utils.get_total_norm(tensors).square()
    parts = [part for tensor in tensors for part in tensor.view(-1).split(_FP64_ELEMENTS)]
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    return torch.stack(norms).square().sum().float()
