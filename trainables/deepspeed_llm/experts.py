"""A mixture of experts. Each expert is sharded over the tensor-parallel ranks like a feed-forward
network; the router is replicated. There is no expert parallelism and no auxiliary loss.

Of DeepSeek's routing, the groups of experts, the factor of their outputs and the correction that
balances them between steps are not implemented: they change no shape.
"""

import torch
from torch import Tensor, nn

from autotune.model import Experts
from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.feed_forward import FeedForward, SharedExperts
from trainables.deepspeed_llm.grouped import grouped_gated_linear
from trainables.deepspeed_llm.linear import Replicated

# Keeps the sum of weights from being zero, as DeepSeek-V3 does.
_TINY = 1e-20


class MixtureOfExperts(nn.Module):
    """Sends each token to its best experts and adds up their weighted outputs."""

    def __init__(self, build: Build, name: str, experts: Experts) -> None:
        super().__init__()
        model, count = build.model, experts.count
        self.parallel, self.experts = build.parallel, experts
        self.activation = model.activation
        self.gate = Replicated(build, f"{name}.gate", (count, model.hidden_size))
        into = (experts.intermediate_size, model.hidden_size)
        back = (model.hidden_size, experts.intermediate_size)
        # One parameter for all experts: ranks then gather and reduce the same parameters in the
        # same order, wherever their tokens go.
        of_expert = f"{name}.experts.{{}}"
        self.gate_up_proj = build.expert_weights(
            [f"{of_expert}.{part}_proj.weight" for part in ("gate", "up")], count, into, shard=0
        )
        self.down_proj = build.expert_weights(
            [f"{of_expert}.down_proj.weight"], count, back, shard=1, std=build.output_std
        )
        self.shared_experts = None
        if experts.shared_intermediate_size:
            width = experts.shared_intermediate_size
            self.shared_experts = SharedExperts(build, f"{name}.shared_experts", width)

    def forward(self, x: Tensor) -> Tensor:
        """From the normed residual stream to what the experts add to it."""
        x = self.parallel.enter(x)
        output = self._routed(x.flatten(0, 1)).view(x.shape)
        if self.shared_experts is not None:
            output = output + self.shared_experts(x)
        return self.parallel.leave(output)

    def _routed(self, rows: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden], this rank's part of the sum."""
        weights, chosen = self._route(rows)
        order = chosen.flatten().argsort(stable=True)
        tokens = order // self.experts.per_token
        # The host must know how many tokens each expert has; it waits for the device here.
        counts = torch.bincount(chosen.flatten(), minlength=self.experts.count).tolist()
        outputs = grouped_gated_linear(
            rows.index_select(0, tokens),
            self.gate_up_proj,
            self.down_proj,
            counts,
            self.activation,
        )
        weighted = outputs * weights.flatten()[order, None]
        return torch.zeros_like(rows).index_add(0, tokens, weighted)

    def _route(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of each token's experts, both [tokens, experts per token]."""
        logits = self.gate(rows).float()
        sigmoid = self.experts.scoring == "sigmoid"
        scores = logits.sigmoid() if sigmoid else logits.softmax(-1)
        weights, chosen = scores.topk(self.experts.per_token, dim=-1)
        if self.experts.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + _TINY)
        return weights.to(rows.dtype), chosen


def feed_forward_of(build: Build, block: int) -> FeedForward | MixtureOfExperts:
    """The feed-forward network of a block (from 0), or its mixture of experts."""
    name, experts = f"model.layers.{block}.mlp", build.model.experts
    if experts is None or block < experts.dense_layers:
        return FeedForward(build, name, build.model.intermediate_size)
    return MixtureOfExperts(build, name, experts)
