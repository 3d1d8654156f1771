"""What a rank asks of devices and of other ranks, answered on a machine that has neither."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3
from deepspeed.runtime.zero import utils as zero_utils
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

from trainables.deepspeed_llm import checkpointing, kernels, pointwise

AsOne = Callable[[Callable[..., Any], Any, Any], Any]
"""Runs a function, with its arguments, as one operation."""


class _Stream:
    """A stream of nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: object = None) -> None: ...


class _Event:
    """An event that has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...

    def wait(self, stream: object = None) -> None: ...

    def query(self) -> bool:
        return True


class StreamsWithoutDevice(CPU_Accelerator):
    """DeepSpeed's accelerator for CPUs, with a GPU's streams: the engines take a GPU's paths."""

    def __init__(self) -> None:
        super().__init__()
        self._computing = self._current = _Stream()

    Stream, Event = _Stream, _Event

    def is_synchronized_device(self) -> bool:
        return False

    def in_side_stream(self) -> bool:
        """Whether operations go to another stream than the computation's."""
        return self._current is not self._computing

    @contextlib.contextmanager
    def stream(self, stream: _Stream | None) -> Iterator[None]:
        before, self._current = self._current, stream or self._current
        try:
            yield
        finally:
            self._current = before

    def current_stream(self, device_index: int | None = None) -> _Stream:
        return self._current

    def default_stream(self, device_index: int | None = None) -> _Stream:
        return self._computing


class _FusedRmsNorm(torch.autograd.Function):
    """Saves what CUDA's kernel does; on CPUs torch composes the norm of operations that save
    more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, as_one: AsOne) -> Tensor:
        def kernel(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)
            return (x * scale * weight).to(x.dtype), scale

        normed, scale = as_one(kernel, (x, weight), {})
        ctx.save_for_backward(x, weight, scale)
        ctx.as_one = as_one
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors

        def kernel(gradient: Tensor) -> tuple[Tensor, Tensor]:
            towards_weight = (gradient * x * scale).flatten(0, -2).sum(0).to(weight.dtype)
            return (gradient * weight * scale).to(x.dtype), towards_weight

        return *ctx.as_one(kernel, (gradient,), {}), None, None


def _equal_parts(tensor: Tensor) -> list[int]:
    """Integers that differ by at most one and add up to the tensor's `total`; ones without it."""
    count = tensor.numel()
    total = getattr(tensor, "total", count)
    return [total // count + (index < total % count) for index in range(count)]


class Answers(TorchFunctionMode):
    """Answers reads of values, which the tensors do not have: there is no infinity, and all experts
    have equally many tokens."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.item, Tensor.__int__, Tensor.__index__):
            return 1
        if func is Tensor.__float__:
            return 1.0
        if func is Tensor.__bool__:
            return False  # no overflow, no infinity
        if func is torch.bincount:  # tokens of each expert
            counts = torch.zeros(kwargs["minlength"], dtype=torch.int64)
            counts.total = args[0].numel()  # type: ignore[attr-defined]
            return counts
        return func(*args, **kwargs)


@contextlib.contextmanager
def kernels_of_gpus(as_one: AsOne) -> Iterator[None]:
    """Have every function that is one kernel on a GPU run by `as_one`."""

    def fused_rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normed: Tensor = _FusedRmsNorm.apply(x, weight, epsilon, as_one)
        return normed

    on_cpus, kernels.fused_rms_norm = kernels.fused_rms_norm, fused_rms_norm
    try:
        with pointwise.compiled_by(as_one):
            yield
    finally:
        kernels.fused_rms_norm = on_cpus


def join_without_peers(rank: int, world_size: int, *, streams: bool) -> Callable[[], bool]:
    """Join a process group of that size in which this rank is alone; returns a function that tells
    whether operations go to another stream than the computation's. Without `streams` none do.

    For a process of its own: torch and DeepSpeed are set up for nothing else.
    """
    local = {"LOCAL_RANK": "0", "LOCAL_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), **local)
    in_side_stream = _no_side_stream
    if streams:
        accelerator = StreamsWithoutDevice()
        set_accelerator(accelerator)
        in_side_stream = accelerator.in_side_stream
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    deepspeed.init_distributed(dist_backend="fake", auto_mpi_discovery=False, verbose=False)
    # All weights are made on their device and in their type, and tensors without values cannot be
    # exchanged for others in a module.
    nn.Module._apply = lambda module, *_, **__: module  # type: ignore[method-assign]
    Tensor.record_stream = lambda *_: None  # type: ignore[method-assign]
    FakeTensor.tolist = _equal_parts  # type: ignore[assignment, method-assign]
    # Torch switches a mode off within `backward`, where blocks are recomputed.
    checkpointing.checkpoint = functools.partial(  # type: ignore[attr-defined]
        checkpoint, context_fn=lambda: (contextlib.nullcontext(), Answers())
    )
    for module in (zero_utils, partition_parameters, partitioned_param_coordinator, stage3):
        for name in ("assert_ints_same_as_other_ranks", "assert_lst_len_same_as_other_ranks"):
            if hasattr(module, name):  # they compare with what other ranks have
                setattr(module, name, lambda *_, **__: None)
    return in_side_stream


def _no_side_stream() -> bool:
    return False
