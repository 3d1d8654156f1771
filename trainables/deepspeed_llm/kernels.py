"""Attention and norm functions by the kernel names of a layout."""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from autotune.hardware import AttentionKernel
from autotune.hardware.kernels import MODULES, InstalledKernel
from autotune.layout import RmsnormKernel

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Causal attention over [batch, heads, sequence, head_size]; keys, values may have fewer heads."""

_BACKENDS = {
    "math": SDPBackend.MATH,
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
}


def attention(
    kernel: AttentionKernel,
    *,
    window: int | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> Attention:
    """Causal attention by that kernel. Raises if it is not installed or rejects the inputs.

    `window`: keys that a query sees, its own included; None: all before it. `scale`: factor of the
    scores; None: 1 / sqrt(head size). `cap`: bound of the scores, by a tanh. `autotune.rules` says
    which kernels have neither window nor cap.
    """
    if kernel == "flash_attn" or kernel == "flash_attn_4":
        return _flash_attn(kernel, window, scale, cap)
    if window is not None or cap is not None:
        if kernel != "math":
            raise ValueError(f"{kernel} has neither a sliding window nor capped scores")
        return functools.partial(_written_attention, window=window, scale=scale, cap=cap)
    backend = _BACKENDS[kernel]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
            )

    return attend if kernel == "math" else _of_equal_heads(attend)


@functools.cache
def _mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """True where a query (row) sees a key (column): [length, length]."""
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions
    return (distance >= 0) & (distance < (length if window is None else window))


def _written_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int | None,
    scale: float | None,
    cap: float | None,
) -> Tensor:
    """What the math kernel calculates, with a window and a cap: torch's own has no cap, and with a
    mask keeps no less for the backward pass."""
    queries = query.unflatten(1, (key.shape[1], -1))
    scores = queries @ key[:, :, None].transpose(-1, -2)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    hidden = ~_mask(query.shape[2], window, query.device)
    weights = scores.float().masked_fill(hidden, -math.inf).softmax(-1).to(query.dtype)
    return (weights @ value[:, :, None]).flatten(1, 2)


def _of_equal_heads(attend: Attention) -> Attention:
    """For kernels that want value heads as wide as key heads: pads them (latent attention)."""

    def padded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        missing = query.shape[-1] - value.shape[-1]
        if missing <= 0:
            return attend(query, key, value)
        return attend(query, key, F.pad(value, (0, missing)))[..., :-missing]

    return padded


def _flash_attn(
    kernel: InstalledKernel, window: int | None, scale: float | None, cap: float | None
) -> Attention:
    flash_attn_func = importlib.import_module(MODULES[kernel]).flash_attn_func
    options: dict[str, Any] = {"causal": True}
    if window is not None:
        options["window_size"] = (window - 1, 0)  # how many keys to the left and to the right
    if scale is not None:
        options["softmax_scale"] = scale
    if cap is not None:
        options["softcap"] = cap

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch_first = (x.transpose(1, 2) for x in (query, key, value))
        output = flash_attn_func(*batch_first, **options)
        # Version 4 also returns the log-sum-exp.
        attended: Tensor = output[0] if isinstance(output, tuple) else output
        return attended.transpose(1, 2)

    return _of_equal_heads(attend)


def fused_rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """torch's: one kernel on GPUs, several operations on CPUs."""
    return F.rms_norm(x, (x.shape[-1],), weight, epsilon)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, kernel: RmsnormKernel) -> Tensor:
    """x / rms(x) * weight over the last dimension; the mean square is computed in fp32."""
    if kernel == "fused":
        return fused_rms_norm(x, weight, epsilon)
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return normalised.to(x.dtype) * weight


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, kernel: RmsnormKernel
) -> Tensor:
    """(x - mean(x)) / std(x) * weight + bias over the last dimension, normalised in fp32."""
    if kernel == "fused":
        return F.layer_norm(x, (x.shape[-1],), weight, bias, epsilon)
    centred = x.float()
    centred = centred - centred.mean(-1, keepdim=True)
    normalised = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + epsilon)
    return normalised.to(x.dtype) * weight + bias
