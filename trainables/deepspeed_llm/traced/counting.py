"""Counts what operations do: a mode of torch's dispatcher around those that run."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from trainables.deepspeed_llm.traced.allocations import Allocations
from trainables.deepspeed_llm.traced.collectives import Collectives

_aten = torch.ops.aten


def _attention_on_cpus(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_on_cpus_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


# Kernels that torch's table of FLOPs leaves out.
_FLOPS: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _attention_on_cpus,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_on_cpus_backward,
}


class Counting(TorchDispatchMode):
    """Counts memory, collectives, FLOPs and operations."""

    def __init__(self, collectives: Collectives, in_side_stream: Callable[[], bool]) -> None:
        """`in_side_stream`: whether operations go to another stream than the computation's."""
        super().__init__()
        self.allocations = Allocations()
        self.collectives = collectives
        self.flops = self.operations = 0
        self._in_side_stream = in_side_stream
        self._within_one = False

    def begin_step(self) -> None:
        """Count a step from zero."""
        self.allocations.begin_step()
        self.collectives.clear()
        self.flops = self.operations = 0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is within to a phase."""
        before = self.allocations.enter(name)
        try:
            yield
        finally:
            self.allocations.enter(before)

    def as_one(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function that a device runs as one kernel: only its results take memory."""
        if self._within_one:
            return function(*args, **kwargs)
        self._within_one = True
        try:
            result = function(*args, **kwargs)
        finally:
            self._within_one = False
        self._see(result, function.__name__)
        self.operations += 1
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked for as often as all else together
            return args[0].fake_device
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._within_one or func.namespace == "prim":
            return result
        if func.namespace == "c10d":
            self.collectives.see(func, args, side_stream=self._in_side_stream())
            return result
        name = func.__name__
        self._see(result, name)
        if func.is_view or name.startswith(("detach", "empty", "new_empty", "lift_fresh")):
            return result
        self.operations += 1
        if count := _FLOPS.get(func):
            self.flops += count(*args)
        elif count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **kwargs, out_val=result)
        return result

    def _see(self, value: Any, operation: str) -> None:
        if isinstance(value, Tensor):
            self.allocations.see(value, operation)
        elif isinstance(value, list | tuple):
            for item in value:
                self._see(item, operation)
