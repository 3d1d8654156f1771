"""Tensor and sequence parallelism after Megatron-LM: the shards and the collectives between them.

Activations are sequence-first, [sequence, batch, hidden], so that an all-gather or reduce-scatter
along the sequence is one contiguous collective (Korthikanti et al. 2022, arXiv 2205.05198).
"""

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Started = tuple[Tensor, dist.Work | None]
"""The result of a collective, and what to wait for before it is used (`finish`)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorParallel:
    """A tensor-parallel group, as one of its ranks sees it."""

    size: int = 1
    """Number of ranks in the group."""
    rank: int = 0
    """This rank's index in the group."""
    sequence_parallel: bool = False
    """Whether activations outside the matrix products are sharded along the sequence."""
    group: dist.ProcessGroup | None = None
    """The process group; None if size is 1."""
    once_per_step: bool = False
    """Whether the optimiser adds up the ranks' gradients of replicated weights before its step
    (`clipping.ClippedNorm`), not each backward pass."""

    @property
    def group_name(self) -> str:
        """The name of the process group, which must be there."""
        assert self.group is not None
        return self.group.group_name

    def enter(self, x: Tensor) -> Tensor:
        """From the residual stream into column-parallel matrices.

        [sequence (/ size with sequence parallelism), batch, hidden] -> [sequence, batch, hidden].
        """
        if self.size == 1:
            return x
        function: Any = _GatherSequence if self.sequence_parallel else _CopyIn
        entered: Tensor = function.apply(x, self)
        return entered

    def leave(self, x: Tensor) -> Tensor:
        """From row-parallel matrices back into the residual stream: adds the ranks' partial sums.

        [sequence, batch, hidden] -> [sequence (/ size with sequence parallelism), batch, hidden].
        """
        if self.size == 1:
            return x
        function: Any = _ScatterSequence if self.sequence_parallel else _SumOut
        left: Tensor = function.apply(x, self)
        return left

    def partial(self, *, within_shard: bool) -> bool:
        """Whether each rank has a part of a replicated weight's gradient only.

        It is applied to a rank's part of the sequence, or, `within_shard`, followed by a shard of
        products, such as a rank's heads.
        """
        return self.size > 1 and (within_shard or self.sequence_parallel)

    def replicated(self, weight: Tensor, *, within_shard: bool = False) -> Tensor:
        """A replicated weight, as it is to be used, so that its gradient is added up."""
        if self.once_per_step or not self.partial(within_shard=within_shard):
            return weight
        shared: Tensor = _CopyIn.apply(weight, self)
        return shared

    def total(self, x: Tensor) -> Tensor:
        """The sum over the ranks of a value that each uses for its own shard."""
        if self.size == 1:
            return x
        total: Tensor = _CopyIn.apply(_SumOut.apply(x, self), self)
        return total

    def all_reduce(self, x: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Reduce `x` over the group in place, and return it."""
        if self.size > 1:
            dist.all_reduce(x, op=op, group=self.group)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """All-gather along the sequence: [sequence / size, ...] -> [sequence, ...]."""
        return self._gather(x, beside=False)[0]

    def start_gather(self, x: Tensor) -> Started:
        """`gather`, beside the computation that follows."""
        return self._gather(x, beside=True)

    def add_up(self, x: Tensor) -> Tensor:
        """The sum of the ranks' values, which must not be used any more: [sequence, ...] ->
        [sequence (/ size with sequence parallelism), ...]."""
        return self._add_up(x, beside=False)[0]

    def start_adding_up(self, x: Tensor) -> Started:
        """`add_up`, beside the computation that follows."""
        return self._add_up(x, beside=True)

    def _gather(self, x: Tensor, *, beside: bool) -> Started:
        gathered = x.new_empty((x.shape[0] * self.size, *x.shape[1:]))
        return gathered, dist.all_gather_into_tensor(
            gathered, x.contiguous(), group=self.group, async_op=_asynchronous(beside)
        )

    def _add_up(self, x: Tensor, *, beside: bool) -> Started:
        if not self.sequence_parallel:
            return x, dist.all_reduce(x, group=self.group, async_op=_asynchronous(beside))
        scattered = x.new_empty((x.shape[0] // self.size, *x.shape[1:]))
        return scattered, dist.reduce_scatter_tensor(
            scattered, x.contiguous(), group=self.group, async_op=_asynchronous(beside)
        )

    def shard(self, full: Tensor, dimension: int) -> Tensor:
        """This rank's slice of a full tensor, as a copy."""
        return full.chunk(self.size, dimension)[self.rank].clone()


def finish(started: Started) -> Tensor:
    """What a collective was started for. The device's stream waits for it, the host does not."""
    result, work = started
    if work is not None:
        work.wait()
    return result


def _asynchronous(beside: bool) -> bool:
    """What torch.compile traces has no handle to wait for."""
    return beside and not torch.compiler.is_compiling()


class _CopyIn(torch.autograd.Function):
    """Identity forward, all-reduce backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parallel: TensorParallel) -> Tensor:
        ctx.parallel = parallel
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.parallel.all_reduce(gradient.clone(memory_format=torch.contiguous_format)), None


class _SumOut(torch.autograd.Function):
    """All-reduce forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parallel: TensorParallel) -> Tensor:
        return parallel.all_reduce(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _GatherSequence(torch.autograd.Function):
    """All-gather along the sequence forward, reduce-scatter backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parallel: TensorParallel) -> Tensor:
        ctx.parallel = parallel
        return parallel.gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.parallel.add_up(gradient), None


class _ScatterSequence(torch.autograd.Function):
    """Reduce-scatter along the sequence forward, all-gather backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parallel: TensorParallel) -> Tensor:
        ctx.parallel = parallel
        return parallel.add_up(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.parallel.gather(gradient), None
