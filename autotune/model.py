"""The model to train: the shape of a decoder-only transformer, and its batch.

`autotune.models` reads it from Hugging Face's config.json, by architecture.
"""

import collections
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.inputs import Flag, PositiveFloat, PositiveInt

Precision = Literal["fp32", "bf16"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu_squared"]
Norm = Literal["rmsnorm", "layernorm"]
NormPlacement = Literal["before", "after", "around"]
QkNorm = Literal["none", "heads", "projection"]
Positions = Literal["rotary", "learned"]

# Products of a forward pass that a backward pass repeats: gradients of inputs and of weights.
_BACKWARD = 2


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class RopeScaling:
    """Rotary frequencies of long contexts, as Llama 3.1 scales them."""

    factor: PositiveFloat
    low_freq_factor: PositiveFloat
    high_freq_factor: PositiveFloat
    original_max_position_embeddings: PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Experts:
    """A mixture of experts in place of the feed-forward network."""

    count: PositiveInt
    """Experts of a block."""
    per_token: PositiveInt
    """Experts that a token is sent to."""
    intermediate_size: PositiveInt
    """Width of one expert."""
    shared_intermediate_size: Annotated[int, Field(strict=True, ge=0)] = 0
    """Width of the shared experts together, which every token passes; 0: none."""
    shared_gate: Flag = False
    """Whether a sigmoid gate scales the output of the shared experts."""
    dense_layers: Annotated[int, Field(strict=True, ge=0)] = 0
    """First blocks that have a feed-forward network instead (`Model.intermediate_size` wide)."""
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    """How the router turns logits into weights."""
    normalised: Flag = True
    """Whether the weights of a token's experts are made to add up to 1."""

    def __post_init__(self) -> None:
        if self.per_token > self.count:
            raise ValueError(
                f"per_token must be at most count, got {self.per_token} and {self.count}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): queries, keys and values from
    low-rank projections; each head has a part without and one with rotation."""

    query_rank: PositiveInt | None
    """Rank of the queries' projection; null: they are projected at once."""
    key_value_rank: PositiveInt
    """Rank of the keys' and values' joint projection."""
    plain_head_size: PositiveInt
    """Elements of a query or key head that are not rotated."""
    rotated_head_size: PositiveInt
    """Elements that are rotated; keys share them over the heads."""
    value_head_size: PositiveInt
    """Elements of a value head."""


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Model:
    """A decoder-only transformer and its batch. Names are mostly those of Hugging Face; the
    defaults are those of Llama."""

    num_hidden_layers: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    """Transformer blocks."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt
    """Width of the feed-forward network."""
    num_attention_heads: PositiveInt
    """Query heads."""
    num_key_value_heads: PositiveInt
    """Key and value heads; fewer than query heads is grouped-query attention."""
    vocab_size: PositiveInt
    """Rows of each embedding matrix."""
    sequence_length: PositiveInt
    """Tokens per sequence."""
    global_batch_size: PositiveInt
    """Sequences per optimiser step, over all data-parallel ranks."""
    architecture: str = "llama"
    """Its name in `autotune.models`."""
    head_dim: PositiveInt | None = None
    """Width of an attention head; null: hidden_size / num_attention_heads."""
    rms_norm_eps: Annotated[float, Field(strict=True, gt=0, lt=1)] = 1e-5
    """Epsilon of the norms, added to the mean square or the variance."""
    rope_theta: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 10_000.0
    """Base of the rotary embedding frequencies."""
    rope_scaling: RopeScaling | None = None
    """Scaling of the frequencies; null: none."""
    rotary_fraction: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    """Share of a head's elements that are rotated."""
    positions: Positions = "rotary"
    """How the model knows positions: rotated queries and keys, or a learned embedding."""
    max_position_embeddings: PositiveInt | None = None
    """Rows of a learned position embedding; null where positions are rotary."""
    gated_feed_forward: Flag = True
    """Whether the feed-forward network has a gate (SwiGLU: three matrices); else it has two."""
    activation: Activation = "silu"
    """Activation of the gate, or of the feed-forward network without one."""
    tie_word_embeddings: Flag = False
    """Whether the output matrix is the input embedding: one matrix in place of two."""
    qkv_bias: Flag = False
    """Whether the projections of queries, keys and values have biases."""
    attention_output_bias: Flag = False
    """Whether the projection of the attention's output has one."""
    mlp_bias: Flag = False
    """Whether the matrices of the feed-forward network have biases."""
    norm: Norm = "rmsnorm"
    """Norm of the residual stream; a LayerNorm has a bias."""
    norm_placement: NormPlacement = "before"
    """Norms of a block: before attention and feed-forward network, after them (on what they add to
    the residual stream), or both."""
    norm_offset: Flag = False
    """Whether norms multiply by 1 + weight (Gemma)."""
    parallel_residual: Flag = False
    """Whether attention and feed-forward network have the same input (GPT-NeoX)."""
    qk_norm: QkNorm = "none"
    """Norm of queries and keys: of each head, of the whole projection, or none."""
    sliding_window: PositiveInt | None = None
    """Tokens that attention looks back in local blocks; null: all of the sequence in every one."""
    global_every: Annotated[int, Field(strict=True, ge=0)] = 0
    """Each block of this number attends to the whole sequence (the last of every group); 0: none,
    where there is a sliding window."""
    local_rope_theta: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None
    """Base of the frequencies in local blocks; null: `rope_theta`."""
    attention_scale: PositiveFloat | None = None
    """Factor of the scores; null: 1 / sqrt(head size)."""
    attention_softcap: PositiveFloat | None = None
    """Scores are capped to this by a tanh; null: they are not."""
    logit_softcap: PositiveFloat | None = None
    """The same of the logits."""
    embedding_scale: PositiveFloat | None = None
    """Factor of the embedded tokens (Gemma: sqrt(hidden_size)); null: none."""
    latent_attention: LatentAttention | None = None
    """Latent attention in place of query, key and value projections; null: none."""
    experts: Experts | None = None
    """Mixture of experts in place of the feed-forward network; null: none."""
    precision: Precision | None = None
    """Precision of weights and activations; None: bf16 on GPUs and fp32 on CPUs."""
    notes: tuple[str, ...] = ()
    """What training here leaves out or changes of the published model, in one sentence each."""

    def __post_init__(self) -> None:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                "num_attention_heads must divide hidden_size, "
                f"got {self.num_attention_heads} and {self.hidden_size}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                "num_key_value_heads must divide num_attention_heads, "
                f"got {self.num_key_value_heads} and {self.num_attention_heads}"
            )
        if self.positions == "rotary" and self.rotated_size % 2:
            of_heads = "" if self.head_dim else "hidden_size / num_attention_heads "
            raise ValueError(
                f"{of_heads}must be even for rotary embeddings, got {self.rotated_size}"
            )
        if (self.positions == "learned") != (self.max_position_embeddings is not None):
            raise ValueError(
                "max_position_embeddings must be given with learned positions, and only then, got "
                f"{self.max_position_embeddings}"
            )
        rows = self.max_position_embeddings
        if rows is not None and self.sequence_length > rows:
            raise ValueError(
                "sequence_length must be at most max_position_embeddings with learned positions, "
                f"got {self.sequence_length} and {rows}"
            )

    # Sizes.

    @property
    def head_size(self) -> int:
        """Width of one query or key head."""
        if self.latent_attention is not None:
            return self.latent_attention.plain_head_size + self.latent_attention.rotated_head_size
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def value_head_size(self) -> int:
        """Width of one value head."""
        latent = self.latent_attention
        return self.head_size if latent is None else latent.value_head_size

    @property
    def rotated_size(self) -> int:
        """Elements of a head that are rotated."""
        if self.latent_attention is not None:
            return self.latent_attention.rotated_head_size
        return int(self.head_size * self.rotary_fraction)

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_size

    @property
    def key_size(self) -> int:
        """Width of all key heads together, as attention sees them."""
        latent = self.latent_attention is not None
        heads = self.num_attention_heads if latent else self.num_key_value_heads
        return heads * self.head_size

    @property
    def value_size(self) -> int:
        """Width of all value heads together, as attention sees them."""
        latent = self.latent_attention is not None
        heads = self.num_attention_heads if latent else self.num_key_value_heads
        return heads * self.value_head_size

    @property
    def attended_size(self) -> int:
        """Width of the attention's output, before its projection."""
        return self.num_attention_heads * self.value_head_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step."""
        return self.sequence_length * self.global_batch_size

    def window_of(self, block: int) -> int | None:
        """Tokens that attention looks back in that block (from 0); None: the whole sequence."""
        if self.sliding_window is None:
            return None
        is_global = self.global_every > 0 and (block + 1) % self.global_every == 0
        return None if is_global else self.sliding_window

    @property
    def expert_blocks(self) -> int:
        """Blocks with a mixture of experts."""
        if self.experts is None:
            return 0
        return max(0, self.num_hidden_layers - self.experts.dense_layers)

    @property
    def feed_forward_matrices(self) -> int:
        """Weight matrices of a feed-forward network, or of an expert."""
        return 3 if self.gated_feed_forward else 2

    # Matrix products of a block as (inputs, outputs), per token.

    @property
    def attention_products(self) -> tuple[tuple[int, int], ...]:
        """The projections of attention, that of its output last."""
        hidden, latent = self.hidden_size, self.latent_attention
        output = (self.attended_size, hidden)
        if latent is None:
            return ((hidden, self.query_size + self.key_size + self.value_size), output)
        into_heads = self.num_attention_heads * (latent.plain_head_size + latent.value_head_size)
        queries: tuple[tuple[int, int], ...] = ((hidden, self.query_size),)
        if latent.query_rank is not None:
            queries = ((hidden, latent.query_rank), (latent.query_rank, self.query_size))
        down = (hidden, latent.key_value_rank + latent.rotated_head_size)
        return (*queries, down, (latent.key_value_rank, into_heads), output)

    def feed_forward_products(self, width: int) -> tuple[tuple[int, int], ...]:
        """The products of a feed-forward network of that width."""
        into = ((self.hidden_size, width),) * (self.feed_forward_matrices - 1)
        return (*into, (width, self.hidden_size))

    # Parameters.

    @property
    def norm_parameters(self) -> int:
        """Parameters of one norm of the residual stream."""
        return self.hidden_size * (2 if self.norm == "layernorm" else 1)

    @property
    def attention_parameters(self) -> int:
        """Parameters of a block's attention, its norms of queries and keys included."""
        matrices = sum(inputs * outputs for inputs, outputs in self.attention_products)
        biases = self.hidden_size if self.attention_output_bias else 0
        if self.qkv_bias:
            biases += self.query_size + self.key_size + self.value_size
        norms = {
            "none": 0,
            "heads": 2 * self.head_size,
            "projection": self.query_size + self.key_size,
        }[self.qk_norm]
        if self.latent_attention is not None:
            norms += self.latent_attention.key_value_rank + (self.latent_attention.query_rank or 0)
        return matrices + biases + norms

    def feed_forward_parameters(self, width: int) -> int:
        """Parameters of a feed-forward network of that width."""
        matrices = self.feed_forward_matrices * self.hidden_size * width
        if not self.mlp_bias:
            return matrices
        return matrices + (self.feed_forward_matrices - 1) * width + self.hidden_size

    @property
    def block_norm_parameters(self) -> int:
        """Parameters of a block's norms of the residual stream."""
        return self.norm_parameters * (4 if self.norm_placement == "around" else 2)

    @property
    def dense_block_parameters(self) -> int:
        """Parameters of a block with a feed-forward network."""
        feed_forward = self.feed_forward_parameters(self.intermediate_size)
        return self.attention_parameters + feed_forward + self.block_norm_parameters

    @property
    def expert_block_parameters(self) -> int:
        """Parameters of a block with a mixture of experts."""
        return self._expert_block_parameters(every_expert=True)

    def _expert_block_parameters(self, *, every_expert: bool) -> int:
        experts = self.experts
        if experts is None:
            return 0
        router = self.hidden_size * experts.count
        count = experts.count if every_expert else experts.per_token
        routed = count * self.feed_forward_parameters(experts.intermediate_size)
        shared = 0
        if experts.shared_intermediate_size:
            shared = self.feed_forward_parameters(experts.shared_intermediate_size)
            shared += self.hidden_size if experts.shared_gate else 0
        return self.attention_parameters + router + routed + shared + self.block_norm_parameters

    @property
    def blocks_parameters(self) -> int:
        """Parameters of all blocks."""
        dense = self.num_hidden_layers - self.expert_blocks
        return (
            dense * self.dense_block_parameters + self.expert_blocks * self.expert_block_parameters
        )

    @property
    def layer_parameters(self) -> float:
        """Mean parameters of a block."""
        return self.blocks_parameters / self.num_hidden_layers

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the input embedding and the output matrix, position embedding included."""
        matrices = 1 if self.tie_word_embeddings else 2
        rows = matrices * self.vocab_size + (self.max_position_embeddings or 0)
        return rows * self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.blocks_parameters + self.embedding_parameters + self.norm_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that a token passes: of the experts, those it is sent to."""
        inactive = self.expert_block_parameters - self._expert_block_parameters(every_expert=False)
        return self.parameters - self.expert_blocks * inactive

    # Arithmetic.

    @property
    def scores_per_token(self) -> float:
        """Mean keys of a query over the blocks as if no key were masked: twice those it sees.

        Of a window of w tokens in a sequence of s, a query sees w - w^2 / 2 s on average.
        """
        length, blocks = self.sequence_length, self.num_hidden_layers
        windows = [self.window_of(block) or length for block in range(blocks)]
        return (
            sum(
                count * (2 * min(window, length) - min(window, length) ** 2 / length)
                for window, count in collections.Counter(windows).items()
            )
            / blocks
        )

    @property
    def attention_flops_per_token(self) -> float:
        """Forward FLOPs per token of all scores and weighted values, causality ignored."""
        sizes = self.query_size + self.attended_size
        return 2.0 * self.num_hidden_layers * sizes * self.scores_per_token

    @property
    def model_flops_per_token(self) -> float:
        """FLOPs per token as MFU counts them: 6 N + 12 L h s, attention not halved.

        N are the parameters that a token passes. Source: Hagemann et al. 2023 (arXiv 2311.05610),
        after Chowdhery et al. 2022, appendix B.
        """
        return 6 * self.active_parameters + 3 * self.attention_flops_per_token

    @property
    def forward_product_flops_per_token(self) -> float:
        """FLOPs per token of a forward pass through the weight matrices of all blocks."""
        experts = self.experts
        dense = sum(i * o for i, o in self.feed_forward_products(self.intermediate_size))
        total = self.num_hidden_layers * sum(i * o for i, o in self.attention_products)
        total += (self.num_hidden_layers - self.expert_blocks) * dense
        if experts is not None:
            one = sum(i * o for i, o in self.feed_forward_products(experts.intermediate_size))
            shared = self.feed_forward_products(experts.shared_intermediate_size)
            gate = self.hidden_size if experts.shared_gate else 0
            of_experts = experts.per_token * one + sum(i * o for i, o in shared) + gate
            total += self.expert_blocks * (of_experts + self.hidden_size * experts.count)
        return 2.0 * total

    def hardware_flops_per_token(self, activation_checkpointing: str) -> float:
        """FLOPs per token that the hardware executes, recomputation included.

        The embedding look-up costs no FLOPs, causal attention computes half of the score matrix, a
        backward pass costs two forward passes, and checkpointing adds the forward pass of what it
        recomputes (Korthikanti et al. 2022, arXiv 2205.05198, appendix A).
        """
        head = 2 * self.vocab_size * self.hidden_size
        blocks = self.forward_product_flops_per_token
        forward_attention = self.attention_flops_per_token / 2
        forward = blocks + head + forward_attention
        recomputed = {
            "none": 0.0,
            "selective": forward_attention,
            "full": blocks + forward_attention,
        }[activation_checkpointing]
        return (1 + _BACKWARD) * forward + recomputed
