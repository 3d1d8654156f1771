"""A layout: how a training step is split over the devices."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune import rules
from autotune.dimension import Dimension, Task
from autotune.errors import InputError
from autotune.hardware import AttentionKernel
from autotune.inputs import Flag, PositiveInt, shown, validated
from autotune.model import Model, Precision

Checkpointing = Literal["none", "selective", "full"]
RmsnormKernel = Literal["plain", "fused"]

CHECKPOINTING: tuple[Checkpointing, ...] = get_args(Checkpointing)
"""In order of how much they recompute, least first."""

NOT_OFFERED = {
    "context_parallel": "context parallelism",
    "expert_parallel": "expert parallelism",
    "virtual_pipeline": "interleaved pipeline schedules",
    "interleaved_pipeline": "interleaved pipeline schedules",
    "offload": "offloading to CPU or NVMe",
    "fp8": "FP8",
    "moe": "expert parallelism",
}
"""Dimensions that users may ask for and that are not supported yet."""


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Layout:
    """One value for every dimension. Hashable; layouts with equal values are the same layout.

    Each field declares its dimension (`autotune.dimension.Dimension`). The order of the fields is
    the order in which a search space is enumerated, and that of the stored columns.
    """

    tensor_parallel: Annotated[
        PositiveInt,
        Dimension(
            values=(1, 2, 4, 8),
            word=lambda layout: f"tp{layout.tensor_parallel}{_SP[layout.sequence_parallel]}",
            columns={"tensor_parallel": float},
            place=lambda size: (math.log2(size),),
            rule=rules.tensor_parallel,
        ),
    ] = 1
    """Ranks that each weight matrix is split over."""
    pipeline_parallel: Annotated[
        PositiveInt,
        Dimension(
            values=(1, 2, 4, 8),
            word=lambda layout: f"pp{layout.pipeline_parallel}",
            columns={"pipeline_parallel": float},
            place=lambda size: (math.log2(size),),
            rule=rules.pipeline_parallel,
        ),
    ] = 1
    """Pipeline stages that the blocks are split over (1F1B schedule)."""
    data_parallel: Annotated[
        PositiveInt,
        Dimension(
            values=None,
            word=lambda layout: f"dp{layout.data_parallel}",
            columns={"data_parallel": float},
            follows=rules.remaining_devices,
        ),
    ] = 1
    """Replicas that the global batch is split over; derived from the number of devices."""
    zero_stage: Annotated[
        int,
        Field(strict=True, ge=0, le=3),
        Dimension(
            values=(1, 2, 3),
            word=lambda layout: f"zero{layout.zero_stage}",
            columns={"zero_stage": float},
            place=lambda stage: (float(stage),),
            rule=rules.zero_stage,
            alias=rules.one_stage_of_one_replica,
        ),
    ] = 1
    """What ZeRO shards over the replicas: 1 optimiser states, 2 also gradients, 3 also weights."""
    micro_batch_size: Annotated[
        PositiveInt,
        Dimension(
            values=(1, 2, 4, 8),
            word=lambda layout: f"mb{layout.micro_batch_size}",
            columns={"micro_batch_size": float},
            place=lambda size: (math.log2(size),),
            rule=rules.micro_batch_size,
        ),
    ] = 1
    """Sequences per forward pass."""
    gradient_accumulation_steps: Annotated[
        PositiveInt,
        Dimension(
            values=None,
            word=lambda layout: "",
            columns={"micro_batches": float},
            follows=rules.remaining_batch,
            can_be_restricted=False,
        ),
    ] = 1
    """Micro-batches per optimiser step; derived from the global batch."""
    activation_checkpointing: Annotated[
        Checkpointing,
        Dimension(
            values=CHECKPOINTING,
            word=lambda layout: f"ckpt={layout.activation_checkpointing}",
            columns={
                "recompute_attention": lambda kind: kind != "none",
                "recompute_block": lambda kind: kind == "full",
            },
            place=lambda kind: (2.0 * (kind == "full"), 2.0 * (kind == "selective")),
        ),
    ] = "none"
    """What the backward pass recomputes: nothing, the attention core, or whole blocks."""
    sequence_parallel: Annotated[
        Flag,
        Dimension(
            values=(False, True),
            word=lambda layout: "",  # shown with the tensor-parallel size
            columns={"sequence_parallel": float},
            place=lambda on: (2.0 * on,),
            rule=rules.sequence_parallel,
        ),
    ] = False
    """Shard norms and residuals along the sequence, over the tensor-parallel ranks."""
    attention_kernel: Annotated[
        AttentionKernel,
        Dimension(
            values=("math", "sdpa_flash", "sdpa_cudnn", "flash_attn"),
            word=lambda layout: layout.attention_kernel,
            is_category=True,
            rule=rules.attention_kernel,
            is_implementation=True,
        ),
    ] = "sdpa_flash"
    """Implementation of attention."""
    rmsnorm_kernel: Annotated[
        RmsnormKernel,
        Dimension(
            values=("plain", "fused"),
            word=lambda layout: f"rmsnorm={layout.rmsnorm_kernel}",
            columns={"plain_norm": lambda kernel: kernel == "plain"},
            is_implementation=True,
        ),
    ] = "fused"
    """RMSNorm as one fused operation, or as separate element-wise operations."""
    torch_compile: Annotated[
        Flag,
        Dimension(
            values=(False,),
            word=lambda layout: "compile" if layout.torch_compile else "",
            columns={"compiled": float},
            is_implementation=True,
        ),
    ] = False
    """Compile each block with torch.compile."""

    @property
    def world_size(self) -> int:
        """Ranks of the layout."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def ranks_per_stage(self) -> int:
        """Ranks of a pipeline stage; they have consecutive numbers."""
        return self.tensor_parallel * self.data_parallel

    @property
    def recomputes(self) -> int:
        """Index of the checkpointing mode in `CHECKPOINTING`: more recomputation is larger."""
        return CHECKPOINTING.index(self.activation_checkpointing)

    def columns(self) -> dict[str, Any]:
        """The layout as plain values by column name."""
        return {name: getattr(self, name) for name in LAYOUT_COLUMNS}

    def describe(self) -> str:
        """Short text, for example ``tp2 pp1 dp2 zero1 mb4 ckpt=none sdpa_flash``."""
        return " ".join(filter(None, (dimension.word(self) for dimension in DIMENSIONS.values())))


_SP = {True: "+sp", False: ""}

LAYOUT_COLUMNS = tuple(field.name for field in dataclasses.fields(Layout))
"""Names of a layout's dimensions, in the order of the stored columns."""

FIELD_TYPES: dict[str, Any] = typing.get_type_hints(Layout, include_extras=True)
"""The annotation of each dimension's field."""


def _dimension_of(annotation: Any) -> Dimension:
    return next(item for item in get_args(annotation) if isinstance(item, Dimension))


DIMENSIONS = {name: _dimension_of(annotation) for name, annotation in FIELD_TYPES.items()}
"""The declaration of each dimension, by name."""

SEARCHED = tuple(name for name, dimension in DIMENSIONS.items() if dimension.is_searched)
"""Names of the dimensions that a search chooses; the others are derived from them."""

RESTRICTABLE = tuple(name for name, dimension in DIMENSIONS.items() if dimension.can_be_restricted)
"""Names of the dimensions for which a space may list allowed values."""


def value_type(dimension: str) -> type:
    """The plain type of a dimension's values: int, bool or str."""
    plain = get_args(FIELD_TYPES[dimension])[0]
    return plain if isinstance(plain, type) else type(get_args(plain)[0])


def why_illegal(
    layout: Layout, model: Model, precision: Precision, *, deepspeed_engine: bool = True
) -> str | None:
    """The first rule that the layout breaks whatever the cluster, or None."""
    chosen = layout.columns()
    task = Task(model, precision, deepspeed_engine=deepspeed_engine)
    reasons = (dimension.rule(chosen, task) for dimension in DIMENSIONS.values() if dimension.rule)
    return next((reason for reason in reasons if reason), None)


def layout_from_mapping(values: Mapping[str, Any], model: Model, *, what: str = "layout") -> Layout:
    """Read a layout; absent columns take their defaults.

    gradient_accumulation_steps is derived from the global batch where it is absent. Raises
    InputError for unknown keys, wrong values, and a global batch that does not divide evenly.
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
            f"micro_batch_size) = {steps}, got {shown(given)}"
        )
    return dataclasses.replace(layout, gradient_accumulation_steps=steps)
