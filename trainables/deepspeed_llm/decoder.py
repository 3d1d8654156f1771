"""A decoder whose layers can be sharded by tensor parallelism and split into pipeline stages.

Its arithmetic is that of Hugging Face's implementations of the architectures in `autotune.models`;
parameter names are mostly those of `LlamaForCausalLM`.
"""

import torch
from torch import Tensor, nn

from trainables.deepspeed_llm.attention import attention_of
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.checkpointing import recomputed
from trainables.deepspeed_llm.experts import feed_forward_of
from trainables.deepspeed_llm.norms import residual_norm
from trainables.deepspeed_llm.rotary import table_of
from trainables.deepspeed_llm.vocabulary import Embedding, OutputMatrix, PositionEmbedding

# Norms by their names in Hugging Face's implementations: before and after attention, before and
# after the feed-forward network.
_NORMS = {
    "before": ("input_layernorm", "", "post_attention_layernorm", ""),
    "after": ("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
    "around": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}


class Block(nn.Module):
    """One transformer block with its residual connections."""

    def __init__(self, build: Build, index: int) -> None:
        super().__init__()
        self.recompute = build.layout.activation_checkpointing == "full"
        self.model, self.index = build.model, index
        self.norms = _NORMS[build.model.norm_placement]
        for name in filter(None, self.norms):
            self.add_module(name, residual_norm(build))
        self.self_attn = attention_of(build, index)
        self.mlp = feed_forward_of(build, index)
        self.run = torch.compile(self._run) if build.layout.torch_compile else self._run

    def forward(self, x: Tensor) -> Tensor:
        # Outside the compiled function, which would recompute the table in every block.
        table = table_of(self.model, self.index, x.device, x.dtype)
        if self.recompute and torch.is_grad_enabled():
            return recomputed(self.run, x, *table)
        return self.run(x, *table)

    def _run(self, x: Tensor, *table: Tensor) -> Tensor:
        before_attention, after_attention, before_mlp, after_mlp = self.norms
        attended = self.self_attn(self._normed(before_attention, x), *table)
        attended = self._normed(after_attention, attended)
        if self.model.parallel_residual:
            return x + attended + self._normed(after_mlp, self.mlp(self._normed(before_mlp, x)))
        x = x + attended
        return x + self._normed(after_mlp, self.mlp(self._normed(before_mlp, x)))

    def _normed(self, name: str, x: Tensor) -> Tensor:
        return self.get_submodule(name)(x) if name else x


class Head(nn.Module):
    """Final norm; returns the full [sequence, batch, hidden]. Its `lm_head` computes the loss."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.parallel = build.parallel
        self.norm = residual_norm(build)
        self.lm_head = OutputMatrix(build)

    def forward(self, x: Tensor) -> Tensor:
        return self.parallel.enter(self.norm(x))


class Decoder(nn.Module):
    """All layers in one module, for the engine without pipeline stages. Returns the loss."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.embedding = Embedding(build)
        learned = build.model.positions == "learned"
        self.positions = PositionEmbedding(build) if learned else None
        self.blocks = nn.ModuleList(
            Block(build, index) for index in range(build.model.num_hidden_layers)
        )
        self.head = Head(build)
        if build.model.tie_word_embeddings:
            self.head.lm_head.tie(self.embedding)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of tokens and targets, both [batch, sequence]."""
        loss: Tensor = self.head.lm_head(self._hidden(tokens), targets)
        return loss

    def logits(self, tokens: Tensor) -> Tensor:
        """[batch, sequence] -> [sequence, batch, vocabulary / tensor-parallel size]."""
        return self.head.lm_head.logits(self._hidden(tokens))

    def _hidden(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.positions is not None:
            x = self.positions(x)
        for block in self.blocks:
            x = block(x)
        hidden: Tensor = self.head(x)
        return hidden
