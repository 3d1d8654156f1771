"""What the cost model predicts for each pipeline stage, in the terms of a trace."""

import dataclasses
from collections.abc import Sequence

from autotune.cost.columns import columns_of
from autotune.cost.memory import peak_memory
from autotune.cost.model import CostModel
from autotune.cost.stages import one_stage
from autotune.cost.traffic import traffic_of
from autotune.layout import Layout

# What a trace does not count.
_NOT_TENSORS = ("context_gib", "pipeline_context_gib", "fragmentation")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PredictedStage:
    """Predicted figures of a rank of a stage."""

    stage: int
    peak_memory_gib: float
    """Of tensors: without the device's context and without fragmentation."""
    exchanged_bytes: dict[str, float]
    """Bytes of a step by group, of whole tensors: an all-reduce counts twice."""


def predicted_stages(
    model: CostModel, layout: Layout, stages: Sequence[int]
) -> list[PredictedStage]:
    """Predictions for those stages (from 0) of a legal layout."""
    constants = {**model.constants, **dict.fromkeys(_NOT_TENSORS, 0.0)}
    columns = columns_of([layout])
    predicted = []
    for stage in stages:
        one = one_stage(columns, model.setting.model, model.setting.trainer.partition, stage)
        memory = peak_memory(columns, one, model.setting, constants)
        traffic = traffic_of(columns, one, model.setting)
        predicted.append(
            PredictedStage(
                stage=stage,
                peak_memory_gib=float(memory.total[0]),
                exchanged_bytes={
                    "tensor": float(traffic.tensor_parallel[0, 0]),
                    "pipeline": float(traffic.stage_transfers[0, 0]),
                    "data": float(traffic.data_parallel[0, 0]),
                },
            )
        )
    return predicted
