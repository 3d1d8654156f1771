"""Norms of the residual stream, and of queries, keys and latents within attention."""

import functools

import torch
from torch import Tensor, nn

from autotune.model import Norm as Kind
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.kernels import layer_norm, rms_norm


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension; its weights are replicated on the ranks."""

    def __init__(self, build: Build, size: int, kind: Kind, *, within_shard: bool) -> None:
        """`within_shard`: whether a rank sees its heads only (`TensorParallel.partial`)."""
        super().__init__()
        self.share = functools.partial(build.parallel.replicated, within_shard=within_shard)
        vector = functools.partial(build.vector, size, within_shard=within_shard)
        self.epsilon = build.model.rms_norm_eps
        self.kernel = build.layout.rmsnorm_kernel
        self.offset = build.model.norm_offset
        self.weight = vector(0.0 if self.offset else 1.0)
        self.bias = vector(0.0) if kind == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        weight, dtype = self.share(self.weight), x.dtype
        if self.offset:
            # In fp32, as Hugging Face's Gemma: bf16 would round 1 + weight to eight bits.
            x, weight = x.float(), 1 + weight.float()
        if self.bias is None:
            return rms_norm(x, weight, self.epsilon, self.kernel).to(dtype)
        bias = self.share(self.bias).to(x.dtype)
        return layer_norm(x, weight, bias, self.epsilon, self.kernel).to(dtype)


class ProjectionNorm(nn.Module):
    """RMSNorm over all heads together, of which each rank has some: [..., size / ranks]."""

    def __init__(self, build: Build, size: int) -> None:
        super().__init__()
        self.parallel = build.parallel
        self.size = size
        self.epsilon = build.model.rms_norm_eps
        self.kernel = build.layout.rmsnorm_kernel
        self.offset = build.model.norm_offset
        self.weight = build.vector(size, 0.0 if self.offset else 1.0, sharded=True)

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        weight: Tensor = self.weight
        if self.offset:
            x, weight = x.float(), 1 + weight.float()
        if self.parallel.size == 1:
            return rms_norm(x, weight, self.epsilon, self.kernel).to(dtype)
        wide = x.float()
        square = self.parallel.total(wide.pow(2).sum(-1, keepdim=True)) / self.size
        normalised = wide * torch.rsqrt(square + self.epsilon)
        return (normalised.to(x.dtype) * weight).to(dtype)


def residual_norm(build: Build) -> Norm:
    """A norm of the residual stream, of which a rank may have a part of the sequence."""
    model = build.model
    return Norm(build, model.hidden_size, model.norm, within_shard=False)


def inner_norm(build: Build, size: int) -> Norm:
    """An RMSNorm within attention, where each rank sees its own heads."""
    return Norm(build, size, "rmsnorm", within_shard=True)
