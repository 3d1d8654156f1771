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
from collections.abc import Callable, Iterator
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
    """Rotary position embedding in rotate-half form.

    [sequence, batch, heads, head_size] with tables of [sequence, head_size].
    """
    rotated: Tensor = _Rotation.apply(x, cosine[:, None, None], sine[:, None, None])
    return rotated


@one_kernel
def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    (x1, x2), (cosine1, cosine2), (sine1, sine2) = (
        tensor.chunk(2, dim=-1) for tensor in (x, cosine, sine)
    )
    first_half = torch.addcmul(x1 * cosine1, x2, sine1, value=-1)
    second_half = torch.addcmul(x2 * cosine2, x1, sine2)
    return torch.cat((first_half, second_half), dim=-1)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotated(gradient, cosine, -sine), None, None  # rotate back


def gated_linear(
    gate: Tensor, up: Tensor, weight: Tensor, activation: Activation = "silu"
) -> Tensor:
    """(activation(gate) * up) @ weight.T; only gate and up are saved for the backward pass.

    gate and up [..., inner], weight [hidden, inner] -> [..., hidden].
    """
    down: Tensor = _GatedLinear.apply(gate, up, weight, activation)
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
def gated(gate: Tensor, up: Tensor, *, activation: Activation = "silu") -> Tensor:
    """activation(gate) * up, without a gradient."""
    return _activate(gate, activation) * up


@one_kernel
def gated_backward(
    gradient: Tensor, gate: Tensor, up: Tensor, *, activation: Activation = "silu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate and up, and the recomputed activation(gate) * up."""
    activated = _activate(gate, activation)
    gate_gradient = _activate_backward(gradient * up, gate, activation)
    return gate_gradient, gradient * activated, activated * up


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, activation: Activation
    ) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        ctx.activation = activation
        return F.linear(gated(gate, up, activation=activation), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        gate, up, weight = ctx.saved_tensors
        gate_gradient, up_gradient, product = gated_backward(
            gradient @ weight, gate, up, activation=ctx.activation
        )
        return gate_gradient, up_gradient, _weight_gradient(gradient, product), None


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
