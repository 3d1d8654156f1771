"""Fused element-wise operations, bound by memory bandwidth: rotary embedding and activations.

Each is an autograd function whose backward pass recomputes cheap values instead of saving them.
On GPUs torch.compile turns each expression into one kernel, for static shapes: kernels for dynamic
shapes spend time on index divisions and masks. The environment variable `AUTOTUNE_POINTWISE=eager`
turns compilation off. On CPUs the expressions run eagerly.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from autotune.model import Activation
from autotune.trial.deepspeed_config import POINTWISE_SWITCH

_stand_in: Callable[[Callable[..., Any], Any, Any], Any] | None = None


@contextlib.contextmanager
def compiled_by(call: Callable[[Callable[..., Any], Any, Any], Any]) -> Iterator[None]:
    """Have `call(function, args, kwargs)` run each function that is one kernel on GPUs."""
    global _stand_in
    before, _stand_in = _stand_in, call
    try:
        yield
    finally:
        _stand_in = before


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def one_kernel(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Compile `function` at its first call with CUDA tensors, unless called from compiled code.

    If compilation fails (no C compiler, for example), print one line and run the function eagerly.
    """

    @functools.cache
    def compiled() -> Callable[_Arguments, _Result]:
        return torch.compile(function, dynamic=False)

    errors: list[Exception] = []

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if _stand_in is not None:
            result: _Result = _stand_in(function, args, kwargs)
            return result
        if errors or not _is_compiled(args[0]):
            return function(*args, **kwargs)
        try:
            return compiled()(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            errors.append(error)
            reason = " ".join(str(error).split())[:300]
            print(f"{function.__name__} is not compiled: {reason}", file=sys.stderr, flush=True)
            return function(*args, **kwargs)

    return call


def _is_compiled(tensor: object) -> bool:
    assert isinstance(tensor, Tensor)
    enabled = tensor.is_cuda and os.environ.get(POINTWISE_SWITCH) != "eager"
    return enabled and not torch.compiler.is_compiling()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding, in rotate-half form, of the first elements of each head.

    [sequence, batch, heads, head_size] with tables of [sequence, at most head_size].
    """
    rotated: Tensor = _Rotation.apply(x, cosine, sine)
    return rotated


def rotated_heads(
    heads: Tensor, counts: Sequence[int], cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value heads, of which `heads` has those numbers one after the other; queries
    and keys are rotated. Of the three only the results are kept.

    [sequence, batch, all heads, head_size] -> three times [sequence, batch, heads, head_size].
    """
    query, key, value = _RotatedHeads.apply(heads, tuple(counts), cosine, sine)
    return query, key, value


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """The expression of `rotate`; with the negative sine it rotates back."""
    size = cosine.shape[-1]
    x1, x2, rest = x.split((size // 2, size // 2, x.shape[-1] - size), dim=-1)
    (cosine1, cosine2), (sine1, sine2) = (
        table[:, None, None].chunk(2, dim=-1) for table in (cosine, sine)
    )
    first_half = torch.addcmul(x1 * cosine1, x2, sine1, value=-1)
    second_half = torch.addcmul(x2 * cosine2, x1, sine2)
    parts = (first_half, second_half, rest) if rest.shape[-1] else (first_half, second_half)
    return torch.cat(parts, dim=-1)


@one_kernel
def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    return _turned(x, cosine, sine)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotated(gradient, cosine, -sine), None, None


@one_kernel
def _split_and_rotated(
    heads: Tensor, cosine: Tensor, sine: Tensor, *, rotated: int
) -> tuple[Tensor, Tensor]:
    """The first heads, rotated, and a copy of the others: a view of them would keep all heads."""
    return _turned(heads[:, :, :rotated], cosine, sine), heads[:, :, rotated:].clone(
        memory_format=torch.contiguous_format
    )


@one_kernel
def _rotated_back(
    query: Tensor, key: Tensor, value: Tensor, cosine: Tensor, sine: Tensor
) -> Tensor:
    turned = [_turned(x, cosine, -sine) for x in (query, key)]
    return torch.cat((*turned, value), dim=2)


class _RotatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, heads: Tensor, counts: tuple[int, int, int], cosine: Tensor, sine: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosine, sine)
        queries, keys, _ = counts
        turned, value = _split_and_rotated(heads, cosine, sine, rotated=queries + keys)
        return turned[:, :, :queries], turned[:, :, queries:], value

    @staticmethod
    def backward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, None, None, None]:
        return _rotated_back(query, key, value, *ctx.saved_tensors), None, None, None


def gated_linear(inner: Tensor, weight: Tensor, activation: Activation = "silu") -> Tensor:
    """(activation(gate) * up) @ weight.T; only `inner`, gate and up side by side, is saved.

    inner [..., 2 * width], weight [hidden, width] -> [..., hidden].
    """
    down: Tensor = _GatedLinear.apply(inner, weight, activation)
    return down


def activated_linear(x: Tensor, weight: Tensor, activation: Activation) -> Tensor:
    """activation(x) @ weight.T; only x is saved for the backward pass.

    x [..., inner], weight [hidden, inner] -> [..., hidden].
    """
    down: Tensor = _ActivatedLinear.apply(x, weight, activation)
    return down


def _activate(x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu_squared":
            return F.relu(x).square()


def _activate_backward(gradient: Tensor, x: Tensor, activation: Activation) -> Tensor:
    aten = torch.ops.aten
    match activation:
        case "silu":
            towards_x: Tensor = aten.silu_backward(gradient, x)
        case "gelu":
            towards_x = aten.gelu_backward(gradient, x)
        case "gelu_tanh":
            towards_x = aten.gelu_backward(gradient, x, approximate="tanh")
        case "relu_squared":
            towards_x = gradient * (2 * F.relu(x))
    return towards_x


@one_kernel
def gated(inner: Tensor, *, activation: Activation = "silu") -> Tensor:
    """activation(gate) * up, without a gradient. inner [..., gate and up side by side]."""
    gate, up = inner.chunk(2, dim=-1)
    return _activate(gate, activation) * up


@one_kernel
def gated_backward(
    gradient: Tensor, inner: Tensor, *, activation: Activation = "silu"
) -> tuple[Tensor, Tensor]:
    """Gradient of `inner`, and the recomputed activation(gate) * up."""
    gate, up = inner.chunk(2, dim=-1)
    activated = _activate(gate, activation)
    gate_gradient = _activate_backward(gradient * up, gate, activation)
    return torch.cat((gate_gradient, gradient * activated), dim=-1), activated * up


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inner: Tensor, weight: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(inner, weight)
        ctx.activation = activation
        return F.linear(gated(inner, activation=activation), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        inner, weight = ctx.saved_tensors
        inner_gradient, product = gated_backward(
            gradient @ weight, inner, activation=ctx.activation
        )
        return inner_gradient, _weight_gradient(gradient, product), None


@one_kernel
def _activated(x: Tensor, *, activation: Activation = "gelu") -> Tensor:
    return _activate(x, activation)


@one_kernel
def _activated_backward(
    gradient: Tensor, x: Tensor, *, activation: Activation = "gelu"
) -> tuple[Tensor, Tensor]:
    """Gradient of x, and the recomputed activation."""
    return _activate_backward(gradient, x, activation), _activate(x, activation)


class _ActivatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.activation = activation
        return F.linear(_activated(x, activation=activation), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        x_gradient, activated = _activated_backward(gradient @ weight, x, activation=ctx.activation)
        return x_gradient, _weight_gradient(gradient, activated), None


def _weight_gradient(gradient: Tensor, inputs: Tensor) -> Tensor:
    """[..., outputs], [..., inputs] -> [outputs, inputs]."""
    return gradient.flatten(0, -2).t() @ inputs.flatten(0, -2)
