"""The feed-forward network, with a gate (SwiGLU, GeGLU) or without one."""

import functools

from torch import Tensor, nn

from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.linear import ColumnParallel, RowParallel
from trainables.deepspeed_llm.pointwise import activated_linear, gated_linear


class _Down(RowParallel):
    """Activation and down projection in one: up, and gate if there is one, -> hidden."""

    def __init__(
        self, build: Build, name: str, shape: tuple[int, int], *, leaves: bool = True
    ) -> None:
        super().__init__(build, name, shape, bias=build.model.mlp_bias, leaves=leaves)
        self.activation = build.model.activation

    def forward(self, up: Tensor, gate: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if gate is None:
            product = activated_linear(up, self.weight, self.activation)
        else:
            product = gated_linear(gate, up, self.weight, self.activation)
        return self.into_residual(product)


class FeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))) without a gate."""

    within_residual = True
    """Whether input and output are of the residual stream; else whole inputs, partial sums."""

    def __init__(self, build: Build, name: str, width: int) -> None:
        super().__init__()
        model = build.model
        self.parallel = build.parallel
        column_parallel = functools.partial(ColumnParallel, build, bias=model.mlp_bias)
        self.gate_proj = None
        if model.gated_feed_forward:
            self.gate_proj = column_parallel(f"{name}.gate_proj", (width, model.hidden_size))
        self.up_proj = column_parallel(f"{name}.up_proj", (width, model.hidden_size))
        shape = (model.hidden_size, width)
        self.down_proj = _Down(build, f"{name}.down_proj", shape, leaves=self.within_residual)

    def forward(self, x: Tensor) -> Tensor:
        """From the normed residual stream to what the network adds to it."""
        if self.within_residual:
            x = self.parallel.enter(x)
        gate = None if self.gate_proj is None else self.gate_proj(x)
        down: Tensor = self.down_proj(self.up_proj(x), gate)
        return down


class SharedExperts(FeedForward):
    """Experts that every token passes, [sequence, batch, hidden] whole on every rank. Returns this
    rank's part of the sum: the routed experts are added before the ranks add their parts."""

    within_residual = False
