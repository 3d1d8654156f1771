"""A Llama whose layers can be sharded by tensor parallelism and split into pipeline stages.

Parameter names and arithmetic are those of Hugging Face's `LlamaForCausalLM`: RMSNorm, rotary
embeddings in rotate-half form, grouped-query attention, SwiGLU, untied embeddings, no biases.
Every weight is initialised at full size in fp32 from a generator seeded with its name, then sliced,
so all layouts of a model start from the same weights.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autotune.layout import Layout
from autotune.model import Model
from trainables.deepspeed_llm.kernels import attention, rms_norm
from trainables.deepspeed_llm.loss import linear_cross_entropy
from trainables.deepspeed_llm.pointwise import gated_linear, rotate
from trainables.deepspeed_llm.tensor_parallel import TensorParallel

_INITIAL_STD = 0.02


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What a layer needs to construct its weights."""

    model: Model
    layout: Layout
    parallel: TensorParallel
    device: torch.device
    dtype: torch.dtype
    seed: int = 0

    def weight(self, name: str, shape: tuple[int, int], *, shard: int, std: float) -> nn.Parameter:
        """This rank's slice, along dimension `shard`, of the weight matrix of full size `shape`."""
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:6], "big"))
        # Not torch.randn: ZeRO 3 wraps it and would round to bf16 before the scaling by std.
        full = torch.normal(0.0, std, size=shape, generator=generator, device=self.device)
        sliced = self.parallel.shard(full, shard) if self.parallel.size > 1 else full
        return self._parameter(sliced, counted=True)

    def norm_weight(self) -> nn.Parameter:
        """The weight of an RMSNorm: ones, replicated on every tensor-parallel rank."""
        ones = torch.ones(self.model.hidden_size, device=self.device)
        return self._parameter(ones, counted=self.parallel.rank == 0)

    def _parameter(self, values: Tensor, *, counted: bool) -> nn.Parameter:
        parameter = nn.Parameter(values.to(self.dtype))
        # DeepSpeed counts a parameter in the global gradient norm only if this is set: replicated
        # parameters must count once.
        parameter.model_parallel = counted  # type: ignore[attr-defined]
        return parameter


class RmsNorm(nn.Module):
    """Root-mean-square norm over the hidden dimension."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.parallel = build.parallel
        self.epsilon = build.model.rms_norm_eps
        self.kernel = build.layout.rmsnorm_kernel
        self.weight = build.norm_weight()

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.parallel.replicated(self.weight), self.epsilon, self.kernel)


class Linear(nn.Module):
    """A linear layer without bias: column-parallel (shard=0) or row-parallel (shard=1)."""

    def __init__(
        self, build: Build, name: str, shape: tuple[int, int], *, shard: int, std: float
    ) -> None:
        super().__init__()
        self.weight = build.weight(f"{name}.weight", shape, shard=shard, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Embedding(nn.Module):
    """Vocabulary-parallel embedding: [batch, sequence] -> [sequence, batch, hidden]."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.parallel = build.parallel
        shape = (build.model.vocab_size, build.model.hidden_size)
        self.weight = build.weight("model.embed_tokens.weight", shape, shard=0, std=_INITIAL_STD)
        self.rows = build.model.vocab_size // build.parallel.size

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.transpose(0, 1)
        if self.parallel.size == 1:
            return F.embedding(tokens, self.weight)
        local = tokens - self.parallel.rank * self.rows
        on_other_ranks = (local < 0) | (local >= self.rows)
        embedded = F.embedding(local.masked_fill(on_other_ranks, 0), self.weight)
        return self.parallel.leave(embedded.masked_fill(on_other_ranks[..., None], 0))


@functools.cache
def rotary_table(
    length: int, head_size: int, theta: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position and frequency, both [length, head_size]."""
    exponents = torch.arange(0, head_size, 2, device=device).float() / head_size
    angles = torch.arange(length, device=device).float()[:, None] * theta**-exponents
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Activation checkpointing: call the function, and recompute it in the backward pass.

    The random state is not saved: there is no dropout, and saving would synchronise with the GPU.
    """
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


class Attention(nn.Module):
    """Grouped-query self-attention; heads are sharded over the tensor-parallel ranks."""

    def __init__(self, build: Build, name: str) -> None:
        super().__init__()
        model = build.model
        self.parallel = build.parallel
        self.head_size = model.head_size
        self.recompute = build.layout.activation_checkpointing == "selective"
        self.attend = attention(build.layout.attention_kernel)
        hidden, grouped = model.hidden_size, model.num_key_value_heads * model.head_size
        column_parallel = functools.partial(Linear, build, shard=0, std=_INITIAL_STD)
        self.q_proj = column_parallel(f"{name}.q_proj", (hidden, hidden))
        self.k_proj = column_parallel(f"{name}.k_proj", (grouped, hidden))
        self.v_proj = column_parallel(f"{name}.v_proj", (grouped, hidden))
        self.o_proj = Linear(
            build, f"{name}.o_proj", (hidden, hidden), shard=1, std=_output_std(model)
        )

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        query = self._heads_first(rotate(self._split_heads(self.q_proj(x)), cosine, sine))
        key = self._heads_first(rotate(self._split_heads(self.k_proj(x)), cosine, sine))
        value = self._heads_first(self._split_heads(self.v_proj(x)))
        if self.recompute and torch.is_grad_enabled():
            attended = recomputed(self.attend, query, key, value)
        else:
            attended = self.attend(query, key, value)
        # Keep the kernel's memory layout: another would need a copy, saved for the backward pass.
        batch_first = attended.transpose(1, 2)
        if batch_first.is_contiguous():
            return self.o_proj(batch_first.flatten(2)).transpose(0, 1)
        return self.o_proj(attended.permute(2, 0, 1, 3).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        """[sequence, batch, heads * head_size] -> [sequence, batch, heads, head_size]."""
        return x.unflatten(-1, (-1, self.head_size))

    def _heads_first(self, x: Tensor) -> Tensor:
        """[sequence, batch, heads, head_size] -> [batch, heads, sequence, head_size]."""
        return x.permute(1, 2, 0, 3)


class GatedLinear(Linear):
    """The gate and the down projection of a SwiGLU: (gate, up) -> hidden."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        return gated_linear(gate, up, self.weight)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, build: Build, name: str) -> None:
        super().__init__()
        hidden, inner = build.model.hidden_size, build.model.intermediate_size
        std = _output_std(build.model)
        column_parallel = functools.partial(Linear, build, shard=0, std=_INITIAL_STD)
        self.gate_proj = column_parallel(f"{name}.gate_proj", (inner, hidden))
        self.up_proj = column_parallel(f"{name}.up_proj", (inner, hidden))
        self.down_proj = GatedLinear(build, f"{name}.down_proj", (hidden, inner), shard=1, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x), self.up_proj(x))


class Block(nn.Module):
    """One transformer block with its residual connections."""

    def __init__(self, build: Build, index: int) -> None:
        super().__init__()
        name = f"model.layers.{index}"
        self.parallel = build.parallel
        self.recompute = build.layout.activation_checkpointing == "full"
        self.model = build.model
        self.input_layernorm = RmsNorm(build)
        self.self_attn = Attention(build, f"{name}.self_attn")
        self.post_attention_layernorm = RmsNorm(build)
        self.mlp = FeedForward(build, f"{name}.mlp")
        self.run = torch.compile(self._run) if build.layout.torch_compile else self._run

    def forward(self, x: Tensor) -> Tensor:
        # Outside the compiled function, which would recompute the table in every block.
        length, head_size = self.model.sequence_length, self.model.head_size
        table = rotary_table(length, head_size, self.model.rope_theta, x.device, x.dtype)
        if self.recompute and torch.is_grad_enabled():
            return recomputed(self.run, x, *table)
        return self.run(x, *table)

    def _run(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        normed = self.parallel.enter(self.input_layernorm(x))
        attended = self.self_attn(normed, cosine, sine)
        x = x + self.parallel.leave(attended)
        transformed = self.mlp(self.parallel.enter(self.post_attention_layernorm(x)))
        return x + self.parallel.leave(transformed)


class OutputMatrix(Linear):
    """Output projection and loss in one function, so that a rank never stores all its logits."""

    def __init__(self, build: Build) -> None:
        shape = (build.model.vocab_size, build.model.hidden_size)
        super().__init__(build, "lm_head", shape, shard=0, std=_INITIAL_STD)
        self.parallel = build.parallel

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        return linear_cross_entropy(x, self.weight, targets, self.parallel)

    def logits(self, x: Tensor) -> Tensor:
        """[sequence, batch, hidden] -> [sequence, batch, this rank's slice of the vocabulary]."""
        return F.linear(x, self.weight)


class Head(nn.Module):
    """Final norm; returns the full [sequence, batch, hidden]. Its `lm_head` computes the loss."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.parallel = build.parallel
        self.norm = RmsNorm(build)
        self.lm_head = OutputMatrix(build)

    def forward(self, x: Tensor) -> Tensor:
        return self.parallel.enter(self.norm(x))


class Llama(nn.Module):
    """All layers in one module, for the engine without pipeline stages. Returns the loss."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.embedding = Embedding(build)
        self.blocks = nn.ModuleList(
            Block(build, index) for index in range(build.model.num_hidden_layers)
        )
        self.head = Head(build)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.head.lm_head(self._hidden(tokens), targets)

    def logits(self, tokens: Tensor) -> Tensor:
        """[batch, sequence] -> [sequence, batch, vocabulary / tensor-parallel size]."""
        return self.head.lm_head.logits(self._hidden(tokens))

    def _hidden(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def _output_std(model: Model) -> float:
    """Initial standard deviation of projections into the residual stream (GPT-2's scaling)."""
    return _INITIAL_STD / math.sqrt(2 * model.num_hidden_layers)
