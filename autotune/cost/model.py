"""The cost model: predicted step time and peak memory of layouts, with their uncertainty."""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np

from autotune.cluster import Cluster
from autotune.cost.columns import Array, Columns, columns_of
from autotune.cost.constants import Constants, known_constants
from autotune.cost.memory import PeakMemory, peak_memory
from autotune.cost.setting import setting_of
from autotune.cost.stages import Stages, stages_of
from autotune.cost.time import StepTime, step_time
from autotune.cost.timed_stages import TimedStages, timed_stages_of
from autotune.cost.trainers import (
    StatedTrainer,
    Trainer,
    constants_for,
    spreads_after_a_fit,
    spreads_for,
    trainer_of,
)
from autotune.errors import InputError
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
    """Memory that a rank can allocate."""
    fit_probability: Array
    """Probability that the layout does not run out of memory."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """Layouts as arrays: the part of an estimate that does not depend on the constants."""

    columns: Columns
    stages: Stages
    timed: TimedStages


class CostModel:
    """Predicts step time and memory of layouts, for one model on one cluster. Immutable."""

    def __init__(
        self,
        model: Model,
        precision: Precision,
        cluster: Cluster,
        *,
        trainer: StatedTrainer = "deepspeed_llm",
        constants: Constants | None = None,
    ) -> None:
        """`constants` replace those of the cluster's device and network, and count as fitted.
        Raises InputError where a needed figure of the device is unknown."""
        own = trainer_of(trainer)
        self.trainer_name = own.name
        self.setting = setting_of(model, precision, cluster, own)
        self.constants = constants or constants_for(cluster.device, own, cluster.network)
        self.spreads = (
            spreads_after_a_fit()
            if constants
            else spreads_for(cluster.device, own, cluster.network)
        )

    def of_trainer(self, trainer: Trainer) -> "CostModel":
        """The cost model of another trainer on the same hardware. Constants that the file of
        neither trainer states stay as they are: what was fitted or measured holds for both."""
        other = copy.copy(self)
        other.trainer_name = trainer.name
        other.setting = dataclasses.replace(self.setting, trainer=trainer)
        known = known_constants()
        other.constants = {
            **self.constants,
            **{name: known[name].value for name in self.setting.trainer.constants},
            **{name: constant.value for name, constant in trainer.constants.items()},
        }
        return other

    def prepare(self, layouts: Sequence[Layout]) -> Prepared:
        """Convert legal layouts to arrays once, to estimate them with different constants.

        Raises InputError for a layout that the trainer does not support.
        """
        for layout in layouts:
            if reason := self.setting.trainer.why_unsupported(layout):
                raise InputError(f"layout {layout.describe()}: {reason}")
        columns = columns_of(layouts)
        model, partition = self.setting.model, self.setting.trainer.partition
        return Prepared(
            columns,
            stages_of(columns, model, partition),
            timed_stages_of(columns, model, partition),
        )

    def estimate(
        self, layouts: Sequence[Layout] | Prepared, constants: Constants | None = None
    ) -> Estimates:
        """Predict step time and memory of `layouts`; `constants` replace the model's own."""
        constants = constants or self.constants
        prepared = layouts if isinstance(layouts, Prepared) else self.prepare(layouts)
        memory = self.memory(prepared, constants)
        peak, capacity = memory.total, self.capacity_gib(constants)
        time = self.time(prepared, constants, peak / capacity)
        return Estimates(
            time=time,
            memory=memory,
            step_seconds=time.total,
            peak_memory_gib=peak,
            capacity_gib=capacity,
            fit_probability=fit_probability(peak / capacity, constants["memory_spread"]),
        )

    def memory(self, prepared: Prepared, constants: Constants) -> PeakMemory:
        """Predict only the memory."""
        return peak_memory(prepared.columns, prepared.stages, self.setting, constants)

    def time(self, prepared: Prepared, constants: Constants, memory_share: Array) -> StepTime:
        """Predict only the time; `memory_share` [n] is peak memory / capacity."""
        return step_time(
            prepared.columns,
            prepared.stages,
            prepared.timed,
            self.setting,
            constants,
            memory_share,
        )

    def capacity_gib(self, constants: Constants) -> float:
        """Memory that a rank can allocate: the nominal memory times `usable_memory`."""
        return self.setting.capacity_gib * constants["usable_memory"]


def fit_probability(memory_share: Array, spread: float) -> Array:
    """Probability to fit of memory / capacity: logistic in the logarithm, with scale `spread`."""
    result: Array = 1 / (1 + np.exp(np.clip(np.log(memory_share) / spread, -50, 50)))
    return result
