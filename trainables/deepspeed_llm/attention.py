"""Self-attention, grouped-query and latent; heads are sharded over the tensor-parallel ranks."""

import torch
from torch import Tensor, nn

from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.checkpointing import recomputed
from trainables.deepspeed_llm.kernels import attention
from trainables.deepspeed_llm.linear import ColumnParallel, Replicated, RowParallel
from trainables.deepspeed_llm.norms import ProjectionNorm, inner_norm
from trainables.deepspeed_llm.pointwise import rotated_heads
from trainables.deepspeed_llm.rotary import rotated


class _SelfAttention(nn.Module):
    """From the normed residual stream to what attention adds to it."""

    def __init__(self, build: Build, name: str, window: int | None) -> None:
        super().__init__()
        model = build.model
        self.parallel = build.parallel
        self.head_size = model.head_size
        self.recompute = build.layout.activation_checkpointing == "selective"
        self.attend = attention(
            build.layout.attention_kernel,
            window=window if window is not None and window < model.sequence_length else None,
            scale=model.attention_scale,
            cap=model.attention_softcap,
        )
        shape = (model.hidden_size, model.attended_size)
        self.o_proj = RowParallel(build, f"{name}.o_proj", shape, bias=model.attention_output_bias)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All [sequence, batch, heads of this rank, head_size]; returns the residual's shape."""
        heads_first = [x.permute(1, 2, 0, 3) for x in (query, key, value)]
        if self.recompute and torch.is_grad_enabled():
            attended = recomputed(self.attend, *heads_first)
        else:
            attended = self.attend(*heads_first)
        # Keep the kernel's memory layout: another would need a copy, saved for the backward pass.
        batch_first = attended.transpose(1, 2)
        if batch_first.is_contiguous():
            return self.o_proj(batch_first.flatten(2), batch_first=True)
        return self.o_proj(attended.permute(2, 0, 1, 3).flatten(2))


class Attention(_SelfAttention):
    """Grouped-query attention."""

    def __init__(self, build: Build, name: str, window: int | None = None) -> None:
        super().__init__(build, name, window)
        model = build.model
        parts = {"q_proj": model.query_size, "k_proj": model.key_size, "v_proj": model.value_size}
        self.qkv_proj = ColumnParallel(build, name, parts, model.hidden_size, bias=model.qkv_bias)
        self.heads = [size // model.head_size for size in self.qkv_proj.sizes]
        self.qk_norm = model.qk_norm
        if model.qk_norm == "heads":
            self.q_norm: nn.Module = inner_norm(build, model.head_size)
            self.k_norm: nn.Module = inner_norm(build, model.head_size)
        elif model.qk_norm == "projection":
            self.q_norm = ProjectionNorm(build, model.query_size)
            self.k_norm = ProjectionNorm(build, model.key_size)

    def forward(self, x: Tensor, *table: Tensor) -> Tensor:
        product = self.qkv_proj(x)
        heads = product.unflatten(-1, (-1, self.head_size))
        if self.qk_norm == "none" and table:
            return self._attended(*rotated_heads(heads, self.heads, *table))
        query, key, value = heads.split(self.heads, dim=2)
        if self.qk_norm == "heads":
            query, key = self.q_norm(query), self.k_norm(key)
        elif self.qk_norm == "projection":
            query, key = (
                norm(x.flatten(2)).view_as(x)
                for norm, x in ((self.q_norm, query), (self.k_norm, key))
            )
        return self._attended(rotated(query, table), rotated(key, table), value)


class LatentAttention(_SelfAttention):
    """Multi-head latent attention of DeepSeek-V2.

    Projections into latents are replicated, those from latents into heads are sharded.

    Rotation pairs the first half of the rotated elements with the second. Published weights pair
    neighbours, which is a permutation of rows.
    """

    def __init__(self, build: Build, name: str, window: int | None = None) -> None:
        super().__init__(build, name, window)
        model, latent = build.model, build.model.latent_attention
        assert latent is not None
        hidden, rank = model.hidden_size, latent.key_value_rank
        self.sizes = latent

        def column(part: str, outputs: int, inputs: int) -> ColumnParallel:
            return ColumnParallel(build, name, {part: outputs}, inputs, enters=False)

        if latent.query_rank is None:
            self.q_proj = column("q_proj", model.query_size, hidden)
        else:
            self.q_a_proj = Replicated(build, f"{name}.q_a_proj", (latent.query_rank, hidden))
            self.q_a_layernorm = inner_norm(build, latent.query_rank)
            self.q_b_proj = column("q_b_proj", model.query_size, latent.query_rank)
        shape = (rank + latent.rotated_head_size, hidden)
        self.kv_a_proj_with_mqa = Replicated(build, f"{name}.kv_a_proj_with_mqa", shape)
        self.kv_a_layernorm = inner_norm(build, rank)
        into_heads = latent.plain_head_size + latent.value_head_size
        self.kv_b_proj = column("kv_b_proj", model.num_attention_heads * into_heads, rank)

    def forward(self, x: Tensor, *table: Tensor) -> Tensor:
        x, sizes = self.parallel.enter(x), self.sizes
        plain, rotary = self._query(x).split((sizes.plain_head_size, sizes.rotated_head_size), -1)
        query = torch.cat((plain, rotated(rotary, table)), dim=-1)
        latent, shared = self.kv_a_proj_with_mqa(x).split(
            (sizes.key_value_rank, sizes.rotated_head_size), -1
        )
        heads = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(
            -1, (-1, sizes.plain_head_size + sizes.value_head_size)
        )
        plain, value = heads.split((sizes.plain_head_size, sizes.value_head_size), -1)
        shared = rotated(shared[:, :, None], table).expand(-1, -1, plain.shape[2], -1)
        return self._attended(query, torch.cat((plain, shared), dim=-1), value)

    def _query(self, x: Tensor) -> Tensor:
        if self.sizes.query_rank is None:
            query: Tensor = self.q_proj(x)
        else:
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        return query.unflatten(-1, (-1, self.head_size))


def attention_of(build: Build, block: int) -> _SelfAttention:
    """The attention of a block (from 0)."""
    kind = Attention if build.model.latent_attention is None else LatentAttention
    return kind(build, f"model.layers.{block}.self_attn", build.model.window_of(block))
