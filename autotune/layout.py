"""A layout: one way to cut a training step over devices."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.errors import InputError
from autotune.hardware import AttentionKernel
from autotune.inputs import Flag, PositiveInt, validated
from autotune.model import Model

Checkpointing = Literal["none", "selective", "full"]
RmsnormKernel = Literal["plain", "fused"]

NOT_OFFERED = {
    "context_parallel": "context parallelism",
    "expert_parallel": "mixture of experts",
    "virtual_pipeline": "interleaved pipeline schedules",
    "interleaved_pipeline": "interleaved pipeline schedules",
    "offload": "offloading to CPU or NVMe",
    "fp8": "FP8",
    "moe": "mixture of experts",
}
"""Dimensions that people look for and that the space does not have yet."""


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Layout:
    """One choice in every dimension. Hashable; equal layouts are the same layout."""

    tensor_parallel: PositiveInt = 1
    """Ranks that share each matrix."""
    pipeline_parallel: PositiveInt = 1
    """Stages that share the blocks (1F1B schedule)."""
    data_parallel: PositiveInt = 1
    """Replicas that share the batch."""
    zero_stage: Annotated[int, Field(strict=True, ge=0, le=3)] = 1
    """What the replicas shard: 1 optimiser states, 2 and gradients, 3 and weights."""
    micro_batch_size: PositiveInt = 1
    """Sequences of one forward pass."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches of one optimiser step; follows from the batch."""
    activation_checkpointing: Checkpointing = "none"
    """What the backward pass recomputes: nothing, the attention core, or whole blocks."""
    sequence_parallel: Flag = False
    """Shard norms and residuals along the sequence, over the tensor-parallel ranks."""
    attention_kernel: AttentionKernel = "sdpa_flash"
    """What computes attention."""
    rmsnorm_kernel: RmsnormKernel = "fused"
    """RMSNorm as one operation, or written out."""
    torch_compile: Flag = False
    """Compile each block with torch.compile."""

    @property
    def world_size(self) -> int:
        """Ranks of the layout."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    def columns(self) -> dict[str, Any]:
        """The layout as plain values by column name."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """Short words for people, for example ``tp2 pp1 dp2 zero1 mb4 ckpt=none sdpa_flash``."""
        words = [
            f"tp{self.tensor_parallel}{'+sp' if self.sequence_parallel else ''}",
            f"pp{self.pipeline_parallel}",
            f"dp{self.data_parallel}",
            f"zero{self.zero_stage}",
            f"mb{self.micro_batch_size}",
            f"ckpt={self.activation_checkpointing}",
            self.attention_kernel,
            f"rmsnorm={self.rmsnorm_kernel}",
        ]
        return " ".join([*words, "compile"] if self.torch_compile else words)


LAYOUT_COLUMNS = tuple(field.name for field in dataclasses.fields(Layout))
"""Names of a layout's dimensions, in the order of the stored columns."""


def layout_from_mapping(values: Mapping[str, Any], model: Model, *, what: str = "layout") -> Layout:
    """Read a layout; absent columns take their defaults.

    gradient_accumulation_steps follows from the batch where it is absent. Raises InputError for
    unknown keys, wrong values, and a batch that the layout cannot divide.
    """
    for key in values:
        if key in NOT_OFFERED:
            raise InputError(f"{what}: {NOT_OFFERED[key]} ({key}) is not offered yet")
    layout = validated(Layout, values, what=what)
    sequences = layout.data_parallel * layout.micro_batch_size
    if model.global_batch_size % sequences:
        raise InputError(
            f"{what}: data_parallel * micro_batch_size must divide global_batch_size, got "
            f"{layout.data_parallel} * {layout.micro_batch_size} and {model.global_batch_size}"
        )
    steps = model.global_batch_size // sequences
    given = values.get("gradient_accumulation_steps", steps)
    if given != steps:
        raise InputError(
            f"{what}: gradient_accumulation_steps must be global_batch_size / (data_parallel * "
            f"micro_batch_size) = {steps}, got {given!r}"
        )
    return dataclasses.replace(layout, gradient_accumulation_steps=steps)
