"""The passes of one micro-batch on every pipeline stage: what `step_time` adds up, one by one."""

import dataclasses

import numpy as np

from autotune.cost.columns import Array, columns_of
from autotune.cost.communication import stage_transfers
from autotune.cost.model import CostModel
from autotune.cost.stages import blocks_per_stage
from autotune.cost.time import block_time, head_time
from autotune.layout import Layout


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Predicted seconds of the parts of a layout's step."""

    forward: Array
    """Forward pass of one micro-batch, by stage [pipeline_parallel]."""
    backward: Array
    """Backward pass of one micro-batch by stage, recomputation included."""
    message: float
    """One message between neighbouring stages, activations or gradients."""
    exchange: float
    """One message each way."""
    reduction: float
    """Data-parallel communication of a step that passes do not hide."""
    update: float
    """Optimiser, and the constant time of a step."""


def pass_times(model: CostModel, layout: Layout) -> PassTimes:
    """The passes of a legal layout. The slow-down by full memory is spread over all parts.

    Raises InputError for a layout that the trainer does not support.
    """
    prepared, setting, constants = model.prepare([layout]), model.setting, model.constants
    time = model.estimate(prepared).time
    columns = columns_of([layout])
    block = block_time(columns, setting, constants)
    head = head_time(columns, setting, constants)
    transfers = stage_transfers(columns, setting, constants)
    in_forward = block.forward + block.forward_collectives
    stages = layout.pipeline_parallel
    blocks = np.array(blocks_per_stage(setting.model, stages, setting.trainer.partition))
    is_last = np.arange(stages) == stages - 1
    slow_down = float((time.total / (time.total - time.memory_pressure))[0])
    return PassTimes(
        forward=slow_down * (blocks * in_forward + is_last * head[0]),
        backward=slow_down * (blocks * (block.parts.total - in_forward) + is_last * head[1]),
        message=slow_down * float(transfers.message[0]),
        exchange=slow_down * float(transfers.exchange[0]),
        reduction=slow_down * float(time.data_parallel[0]),
        update=slow_down * float((time.optimiser + time.other)[0]),
    )
