"""What layers are constructed from: the model, the layout, and weights that do not depend on it.

Every weight is initialised at full size in fp32 from a generator seeded with its name, then sliced,
so all layouts of a model start from the same weights.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autotune.layout import Layout
from autotune.model import Model
from trainables.deepspeed_llm.tensor_parallel import TensorParallel

INITIAL_STD = 0.02
"""Standard deviation of most initial weights."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What a layer needs to construct its weights."""

    model: Model
    layout: Layout
    parallel: TensorParallel
    device: torch.device
    dtype: torch.dtype
    seed: int = 0

    @property
    def output_std(self) -> float:
        """Initial standard deviation of projections into the residual stream (as GPT-2's)."""
        return INITIAL_STD / math.sqrt(2 * self.model.num_hidden_layers)

    def weight(
        self,
        name: str,
        shape: tuple[int, int],
        *,
        shard: int | None,
        within_shard: bool = False,
        std: float = INITIAL_STD,
    ) -> nn.Parameter:
        """This rank's slice, along dimension `shard`, of the weight matrix of full size `shape`.

        None: the whole matrix, replicated on every tensor-parallel rank (`within_shard`:
        `TensorParallel.partial`).
        """
        values = self._normal(name, shape, shard, std)
        sharded = shard is not None
        return self._parameter(values, sharded=sharded, within_shard=within_shard, decayed=True)

    def rows(self, parts: Mapping[str, int], columns: int) -> nn.Parameter:
        """One parameter with this rank's rows of several matrices, one matrix after the other.

        `parts`: the number of rows of each whole matrix, by its name. All have `columns` columns.
        """
        own = [self._normal(name, (rows, columns), 0, INITIAL_STD) for name, rows in parts.items()]
        return self._parameter(torch.cat(own), sharded=True, decayed=True)

    def expert_weights(
        self,
        names: Sequence[str],
        count: int,
        shape: tuple[int, int],
        *,
        shard: int,
        std: float = INITIAL_STD,
    ) -> nn.Parameter:
        """One parameter with the same slices of every expert's matrices, all of that shape, one
        after the other: [count, rows of all slices, columns].

        Each name has a place for the expert's number.
        """
        experts = [
            torch.cat([self._normal(name.format(i), shape, shard, std) for name in names])
            for i in range(count)
        ]
        return self._parameter(torch.stack(experts), sharded=True, decayed=True)

    def vector(
        self, size: int, value: float, *, sharded: bool = False, within_shard: bool = False
    ) -> nn.Parameter:
        """A bias or the weight of a norm, of full size `size` and one value in all elements."""
        own = size // self.parallel.size if sharded else size
        values = torch.full((own,), value, device=self.device)
        return self._parameter(values, sharded=sharded, within_shard=within_shard, decayed=False)

    def _normal(self, name: str, shape: tuple[int, int], shard: int | None, std: float) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:6], "big"))
        # Not torch.randn: ZeRO 3 wraps it and would round to bf16 before the scaling by std.
        full = torch.normal(0.0, std, size=shape, generator=generator, device=self.device)
        if shard is None or self.parallel.size == 1:
            return full
        return self.parallel.shard(full, shard)

    def _parameter(
        self, values: Tensor, *, sharded: bool, decayed: bool, within_shard: bool = False
    ) -> nn.Parameter:
        parameter = nn.Parameter(values.to(self.dtype))
        # DeepSpeed counts a parameter in the global gradient norm only if this is set: replicated
        # parameters must count once.
        counted = sharded or self.parallel.rank == 0
        parameter.model_parallel = counted  # type: ignore[attr-defined]
        parameter.decayed = decayed  # type: ignore[attr-defined]
        partial = not sharded and self.parallel.partial(within_shard=within_shard)
        parameter.partial = partial  # type: ignore[attr-defined]
        return parameter
