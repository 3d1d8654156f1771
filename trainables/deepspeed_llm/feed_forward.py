"""The feed-forward network, with a gate (SwiGLU, GeGLU) or without one."""

from torch import Tensor, nn

from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.linear import ColumnParallel, RowParallel
from trainables.deepspeed_llm.pointwise import activated_linear, gated_linear


class _Down(RowParallel):
    """Activation and down projection in one: up, after the gate if there is one, -> hidden."""

    def __init__(
        self, build: Build, name: str, shape: tuple[int, int], *, leaves: bool = True
    ) -> None:
        super().__init__(build, name, shape, bias=build.model.mlp_bias, leaves=leaves)
        self.activation = build.model.activation
        self.product = gated_linear if build.model.gated_feed_forward else activated_linear

    def forward(self, inner: Tensor) -> Tensor:  # type: ignore[override]
        return self.into_residual(self.product(inner, self.weight, self.activation))


class FeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))) without a gate."""

    within_residual = True
    """Whether input and output are of the residual stream; else whole inputs, partial sums."""

    def __init__(self, build: Build, name: str, width: int) -> None:
        super().__init__()
        model, enters = build.model, self.within_residual
        parts = {"gate_proj": width} if model.gated_feed_forward else {}
        parts["up_proj"] = width
        self.inner_proj = ColumnParallel(
            build, name, parts, model.hidden_size, bias=model.mlp_bias, enters=enters
        )
        shape = (model.hidden_size, width)
        self.down_proj = _Down(build, f"{name}.down_proj", shape, leaves=enters)

    def forward(self, x: Tensor) -> Tensor:
        """From the normed residual stream to what the network adds to it."""
        down: Tensor = self.down_proj(self.inner_proj(x))
        return down


class SharedExperts(FeedForward):
    """Experts that every token passes, [sequence, batch, hidden] whole on every rank. Returns this
    rank's part of the sum: the routed experts are added before the ranks add their parts."""

    within_residual = False
