"""Chains of element-wise operations that move more memory than they compute.

Each is an autograd function over plain tensor expressions: the backward pass recomputes what is
cheap instead of keeping it. On GPUs the expressions are compiled (torch.compile) into one kernel
each; for shapes that are known, as kernels for any shape divide and mask at every element.
`AUTOTUNE_POINTWISE=eager` in the environment leaves that out. On CPUs they run as written.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from autotune.trial.deepspeed_config import POINTWISE_SWITCH

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def one_kernel(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Compile `function` at its first call with CUDA tensors; inside a compiled block it is
    already part of one. Where that fails (no C compiler, say) one line says so, and the function
    runs as written."""

    @functools.cache
    def compiled() -> Callable[_Arguments, _Result]:
        return torch.compile(function, dynamic=False)

    cannot: list[Exception] = []

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if cannot or not _is_compiled(args[0]):
            return function(*args, **kwargs)
        try:
            return compiled()(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            cannot.append(error)
            reason = " ".join(str(error).split())[:300]
            print(f"{function.__name__} is not compiled: {reason}", file=sys.stderr, flush=True)
            return function(*args, **kwargs)

    return call


def _is_compiled(tensor: object) -> bool:
    assert isinstance(tensor, Tensor)
    on = tensor.is_cuda and os.environ.get(POINTWISE_SWITCH) != "eager"
    return on and not torch.compiler.is_compiling()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding in rotate-half form.

    [sequence, batch, heads, head_size] with tables of [sequence, head_size].
    """
    rotated: Tensor = _Rotation.apply(x, cosine[:, None, None], sine[:, None, None])
    return rotated


@one_kernel
def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    (first, second), (cosines, more), (sines, others) = (
        tensor.chunk(2, dim=-1) for tensor in (x, cosine, sine)
    )
    above = torch.addcmul(first * cosines, second, sines, value=-1)
    return torch.cat((above, torch.addcmul(second * more, first, others)), dim=-1)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotated(gradient, cosine, -sine), None, None  # back by the same angle


def gated_linear(gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
    """(silu(gate) * up) @ weight.T, of which only gate and up are kept.

    [..., inner] twice and [hidden, inner] -> [..., hidden].
    """
    down: Tensor = _GatedLinear.apply(gate, up, weight)
    return down


@one_kernel
def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


@one_kernel
def _gated_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate and up, and silu(gate) * up once more."""
    activated = F.silu(gate)
    gate_gradient = torch.ops.aten.silu_backward(gradient * up, gate)
    return gate_gradient, gradient * activated, activated * up


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return F.linear(_gated(gate, up), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, weight = ctx.saved_tensors
        gate_gradient, up_gradient, product = _gated_backward(gradient @ weight, gate, up)
        rows = gradient.flatten(0, -2)
        return gate_gradient, up_gradient, rows.t() @ product.flatten(0, -2)
