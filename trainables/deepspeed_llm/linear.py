"""Linear layers, sharded over the tensor-parallel ranks or replicated."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from trainables.deepspeed_llm.build import Build
from trainables.deepspeed_llm.region import entering_linear


class ColumnParallel(nn.Module):
    """One product with several matrices that read the same input, or with one matrix. Each rank
    computes its slice of the outputs of each.

    [sequence (/ ranks with sequence parallelism), batch, inputs] -> [sequence, batch, outputs of
    this rank, of one matrix after the other].
    """

    def __init__(
        self,
        build: Build,
        name: str,
        parts: Mapping[str, int],
        inputs: int,
        *,
        bias: bool = False,
        enters: bool = True,
    ) -> None:
        """`parts`: the outputs of each whole matrix, by its name within `name`. `enters`: False
        where the input has already left the residual stream: [..., inputs], whole on every rank."""
        super().__init__()
        self.parallel = build.parallel
        self.enters = enters
        self.sizes = [size // build.parallel.size for size in parts.values()]
        """Outputs of this rank, of each matrix."""
        self.weight = build.rows(
            {f"{name}.{part}.weight": size for part, size in parts.items()}, inputs
        )
        outputs = sum(parts.values())
        self.bias = build.vector(outputs, 0.0, sharded=True) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.enters:
            return entering_linear(x, self.weight, self.bias, self.parallel)
        return F.linear(x, self.weight, self.bias)


class RowParallel(nn.Module):
    """From a slice of the inputs back into the residual stream, which adds the ranks' parts.

    [sequence, batch, inputs / ranks] -> [sequence (/ ranks with sequence parallelism), batch,
    outputs].
    """

    def __init__(
        self,
        build: Build,
        name: str,
        shape: tuple[int, int],
        *,
        bias: bool = False,
        leaves: bool = True,
    ) -> None:
        """`leaves`: False leaves the sum over the ranks to the caller, who adds to it first."""
        super().__init__()
        self.parallel = build.parallel
        self.leaves = leaves
        self.weight = build.weight(f"{name}.weight", shape, shard=1, std=build.output_std)
        self.bias = build.vector(shape[0], 0.0) if bias else None

    def forward(self, x: Tensor, *, batch_first: bool = False) -> Tensor:
        """With `batch_first` the input is [batch, sequence, inputs / ranks]."""
        product = F.linear(x, self.weight)
        return self.into_residual(product.transpose(0, 1) if batch_first else product)

    def into_residual(self, product: Tensor) -> Tensor:
        """Add the ranks' products, then the bias: once, not once per rank."""
        if self.leaves:
            product = self.parallel.leave(product)
        return product if self.bias is None else product + self.parallel.replicated(self.bias)


class Replicated(nn.Module):
    """A whole matrix on each rank, between `enter` and a shard of products: no rank knows all of
    its gradient."""

    def __init__(self, build: Build, name: str, shape: tuple[int, int]) -> None:
        super().__init__()
        self.parallel = build.parallel
        self.weight = build.weight(f"{name}.weight", shape, shard=None, within_shard=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.parallel.replicated(self.weight, within_shard=True))
