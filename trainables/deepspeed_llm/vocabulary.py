"""Embeddings of tokens and positions, and the output matrix, sharded along the vocabulary."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.loss import capped, linear_cross_entropy


class Embedding(nn.Module):
    """Vocabulary-parallel embedding: [batch, sequence] -> [sequence, batch, hidden]."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        model = build.model
        self.parallel = build.parallel
        self.weight = build.weight(
            "model.embed_tokens.weight", (model.vocab_size, model.hidden_size), shard=0
        )
        self.rows = model.vocab_size // build.parallel.size
        self.scale = None
        if model.embedding_scale is not None:
            # Rounded as Hugging Face's Gemma does.
            self.scale = float(torch.tensor(model.embedding_scale, dtype=build.dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self._embedded(tokens.transpose(0, 1))
        return embedded if self.scale is None else embedded * self.scale

    def _embedded(self, tokens: Tensor) -> Tensor:
        if self.parallel.size == 1:
            return F.embedding(tokens, self.weight)
        local = tokens - self.parallel.rank * self.rows
        on_other_ranks = (local < 0) | (local >= self.rows)
        embedded = F.embedding(local.masked_fill(on_other_ranks, 0), self.weight)
        return self.parallel.leave(embedded.masked_fill(on_other_ranks[..., None], 0))


class PositionEmbedding(nn.Module):
    """Adds a learned embedding of each position to [sequence, batch, hidden]."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.parallel = build.parallel
        rows = build.model.max_position_embeddings
        assert rows is not None
        shape = (rows, build.model.hidden_size)
        self.weight = build.weight("model.embed_positions.weight", shape, shard=None)

    def forward(self, x: Tensor) -> Tensor:
        length = len(x)
        first = self.parallel.rank * length if self.parallel.sequence_parallel else 0
        return x + self.parallel.replicated(self.weight)[first : first + length, None]


class OutputMatrix(nn.Module):
    """Output projection and loss in one function, so that a rank never stores all its logits."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        model = build.model
        self.parallel = build.parallel
        self.cap = model.logit_softcap
        self.weight: nn.Parameter | None = None
        if not model.tie_word_embeddings:
            shape = (model.vocab_size, model.hidden_size)
            self.weight = build.weight("lm_head.weight", shape, shard=0)

    def tie(self, embedding: Embedding) -> None:
        """Use the matrix of the embedding, for a model that has no other."""
        self.weight = embedding.weight

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """Loss of [sequence, batch, hidden], whole on every rank, and targets [batch, sequence]."""
        assert self.weight is not None
        return linear_cross_entropy(x, self.weight, targets, self.parallel, self.cap)

    def logits(self, x: Tensor) -> Tensor:
        """[sequence, batch, hidden] -> [sequence, batch, this rank's slice of the vocabulary]."""
        assert self.weight is not None
        return capped(F.linear(x, self.weight), self.cap)
