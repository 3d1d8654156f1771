"""Attention and RMSNorm functions by the kernel names of a layout."""

import importlib
from collections.abc import Callable

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


def attention(kernel: AttentionKernel) -> Attention:
    """Causal attention by that kernel. Raises if it is not installed or rejects the inputs."""
    if kernel == "flash_attn" or kernel == "flash_attn_4":
        return _flash_attn(kernel)
    backend = _BACKENDS[kernel]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=grouped
            )

    return attend


def _flash_attn(kernel: InstalledKernel) -> Attention:
    flash_attn_func = importlib.import_module(MODULES[kernel]).flash_attn_func

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch_first = (x.transpose(1, 2) for x in (query, key, value))
        output = flash_attn_func(*batch_first, causal=True)
        # Version 4 also returns the log-sum-exp.
        attended: Tensor = output[0] if isinstance(output, tuple) else output
        return attended.transpose(1, 2)

    return attend


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, kernel: RmsnormKernel) -> Tensor:
    """x / rms(x) * weight over the last dimension; the mean square is computed in fp32."""
    if kernel == "fused":
        return F.rms_norm(x, (x.shape[-1],), weight, epsilon)
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return normalised.to(x.dtype) * weight
