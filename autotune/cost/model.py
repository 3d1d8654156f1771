"""The cost model: predicted step time and peak memory of layouts, with their uncertainty."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from autotune.cluster import Cluster
from autotune.cost.columns import Array, Columns, columns_of
from autotune.cost.constants import Constants, constants_for
from autotune.cost.memory import PeakMemory, peak_memory
from autotune.cost.setting import setting_of
from autotune.cost.stages import Stages, stages_of
from autotune.cost.time import StepTime, step_time
from autotune.cost.trainers import trainer_named
from autotune.layout import Layout
from autotune.model import Model, Precision


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """Predictions for layouts, in their order; every array is [n]."""

    time: StepTime
    """Seconds by cause."""
    memory: PeakMemory
    """GiB by cause."""
    step_seconds: Array
    peak_memory_gib: Array
    capacity_gib: float
    """What a rank can use."""
    fit_probability: Array
    """Probability that the layout does not run out of memory."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """Layouts as the formulas need them: what does not depend on constants is done once."""

    columns: Columns
    stages: Stages


class CostModel:
    """Predicts layouts of one model on one cluster. Pure: no state but its constants."""

    def __init__(
        self,
        model: Model,
        precision: Precision,
        cluster: Cluster,
        *,
        trainer: str = "deepspeed_llm",
        constants: Constants | None = None,
    ) -> None:
        """`constants` replace those of the cluster's device. Raises InputError where something
        about the device is not known."""
        self.setting = setting_of(model, precision, cluster)
        self.trainer_name = trainer
        self.trainer = trainer_named(trainer)
        self.constants = constants or constants_for(cluster.device, trainer, cluster.network)

    def prepare(self, layouts: Sequence[Layout]) -> Prepared:
        """Layouts, which must be legal, in the form that is estimated again and again."""
        columns = columns_of(layouts)
        return Prepared(columns, stages_of(columns, self.setting.model, self.trainer.partition))

    def estimate(
        self, layouts: Sequence[Layout] | Prepared, constants: Constants | None = None
    ) -> Estimates:
        """Predict `layouts`; other `constants` answer "what if"."""
        constants = constants or self.constants
        prepared = layouts if isinstance(layouts, Prepared) else self.prepare(layouts)
        memory = self.memory(prepared, constants)
        peak, capacity = memory.total, self.capacity_gib(constants)
        time = step_time(
            prepared.columns, prepared.stages, self.setting, constants, peak / capacity
        )
        return Estimates(
            time=time,
            memory=memory,
            step_seconds=time.total,
            peak_memory_gib=peak,
            capacity_gib=capacity,
            fit_probability=fit_probability(peak / capacity, constants["memory_spread"]),
        )

    def memory(self, prepared: Prepared, constants: Constants) -> PeakMemory:
        """Only the memory."""
        return peak_memory(
            prepared.columns, prepared.stages, self.setting, constants, self.trainer.states
        )

    def capacity_gib(self, constants: Constants) -> float:
        """What a rank can use."""
        return self.setting.capacity_gib * constants["usable_memory"]


def fit_probability(memory_share: Array, spread: float) -> Array:
    """Probability that a predicted share of the capacity fits: logistic in its logarithm."""
    result: Array = 1 / (1 + np.exp(np.clip(np.log(memory_share) / spread, -50, 50)))
    return result
