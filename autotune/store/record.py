"""The row that is kept of a finished trial, and its columns."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pyarrow as pa
import pydantic
from pydantic import Field

from autotune.inputs import shown
from autotune.layout import LAYOUT_COLUMNS, Layout, value_type
from autotune.search.prior import Prediction
from autotune.trial.measurement import Measurement, why_not_measured
from autotune.trial.trial import Outcome

Purpose = Literal["explore", "reduced", "confirm"]
"""What a trial is for: to find, to find cheaply, or to make sure."""

_PARQUET_TYPES: dict[type, pa.DataType] = {int: pa.int64(), str: pa.string(), bool: pa.bool_()}
LAYOUT_FIELDS = [
    pa.field(name, _PARQUET_TYPES[value_type(name)], nullable=False) for name in LAYOUT_COLUMNS
]
"""The layout's columns, in every table that has them."""

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_RUN_ID = pa.field("run_id", pa.string())  # null in runs of version 0.1
TRIAL_SCHEMA = pa.schema(
    [
        pa.field("trial_id", pa.string(), nullable=False),
        pa.field("trainable", pa.string(), nullable=False),
        pa.field("purpose", pa.string(), nullable=False),
        *LAYOUT_FIELDS,
        pa.field("world_size", pa.int64(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("step_seconds", pa.float64()),
        pa.field("step_seconds_iqr", pa.float64()),
        pa.field("tokens_per_second_per_gpu", pa.float64()),
        pa.field("mfu", pa.float64()),
        pa.field("hardware_flops_utilisation", pa.float64()),
        pa.field("peak_memory_gib", pa.float64()),
        pa.field("final_loss", pa.float64()),
        pa.field("step_seconds_drift", pa.float64()),
        pa.field("memory_growth_gib", pa.float64()),
        pa.field("predicted_step_seconds", pa.float64()),
        pa.field("predicted_peak_memory_gib", pa.float64()),
        pa.field("predicted_fit_probability", pa.float64()),
        pa.field("measured_steps", pa.int64(), nullable=False),
        pa.field("measured_micro_batches", pa.list_(pa.int64()), nullable=False),
        pa.field("measured_data_parallel", pa.int64(), nullable=False),
        pa.field("startup_seconds", pa.float64()),
        pa.field("gpu_seconds", pa.float64(), nullable=False),
        pa.field("attempts", pa.int64(), nullable=False),
        pa.field("slow_device", pa.string()),
        pa.field("started_at", _TIMESTAMP, nullable=False),
        pa.field("finished_at", _TIMESTAMP, nullable=False),
        _RUN_ID,
    ]
)
"""Columns of trials/*.parquet."""

STEP_SCHEMA = pa.schema(
    [
        pa.field("trial_id", pa.string(), nullable=False),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("micro_batches", pa.int64()),
        pa.field("step_seconds", pa.float64(), nullable=False),
        pa.field("loss", pa.float64()),
        pa.field("grad_norm", pa.float64()),
        pa.field("peak_memory_gib", pa.float64()),
        pa.field("peak_reserved_gib", pa.float64()),
        pa.field("probe_seconds", pa.float64()),
        _RUN_ID,
    ]
)
"""Columns of steps/*.parquet."""

TRACE_SCHEMA = pa.schema(
    [
        pa.field("trial_id", pa.string(), nullable=False),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("stage", pa.int64(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("micro_batch", pa.int64()),
        pa.field("start_seconds", pa.float64(), nullable=False),
        pa.field("end_seconds", pa.float64(), nullable=False),
        pa.field("clock_offset_seconds", pa.float64(), nullable=False),
        _RUN_ID,
    ]
)
"""Columns of traces/*.parquet."""

PRUNED_SCHEMA = pa.schema(
    [*LAYOUT_FIELDS, _RUN_ID, pa.field("reason", pa.string(), nullable=False)]
)
"""Columns of pruned.parquet."""


_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """A finished trial."""

    trial_id: Annotated[str, Field(pattern=r"^[0-9]{4,9}$")]
    """Number of the trial in its run, with leading zeros; also the name of its files."""
    trainable: str
    """What ran it: deepspeed, simulated, replay, or the name of another package's trainable."""
    purpose: Purpose
    """explore; reduced: explored by steps with fewer micro-batches; confirm: a longer trial of one
    of the fastest layouts."""
    layout: Layout
    outcome: Outcome
    """ok, stopped, oom, timeout, crashed, lost or invalid."""
    reason: str
    """Why it ended so; empty for ok."""
    measurement: Measurement
    startup_seconds: _NotNegative | None
    """Until every rank could begin its first step; null where that did not happen."""
    gpu_seconds: _NotNegative
    """Device seconds that the trial held its nodes."""
    attempts: Annotated[int, Field(ge=1)]
    """Starts that it took."""
    started_at: pydantic.AwareDatetime
    """When it was handed out."""
    finished_at: pydantic.AwareDatetime
    """When it was put on record."""
    slow_device: str | None = None
    """The device that was slow against its peers, and by how much; null: none was."""
    prediction: Prediction | None = None
    """What the search expected when it proposed the layout; null without a cost model."""

    def row(self) -> dict[str, Any]:
        """The record by the names of `TRIAL_SCHEMA`."""
        own = {name: getattr(self, name) for name in _OWN_COLUMNS}
        return {
            **own,
            **self.layout.columns(),
            **dataclasses.asdict(self.measurement),
            **{
                f"predicted_{name}": getattr(self.prediction, name, None)
                for name in _PREDICTION_FIELDS
            },
            "outcome": self.outcome.value,
            "world_size": self.layout.world_size,
            "measured_data_parallel": self.layout.data_parallel,
        }


_OWN_COLUMNS = [
    field.name
    for field in dataclasses.fields(TrialRecord)
    if field.name not in ("layout", "measurement", "outcome", "prediction")
]
_PREDICTION_FIELDS = [field.name for field in dataclasses.fields(Prediction)]


_record_adapter = pydantic.TypeAdapter(TrialRecord)


def record_from_row(row: Mapping[str, Any]) -> TrialRecord:
    """Read what `TrialRecord.row` gave. Raises ValueError for values that it cannot have given."""
    names = (field.name for field in dataclasses.fields(Measurement))
    measured: dict[str, Any] = {name: row[name] for name in names}
    measured["measured_micro_batches"] = tuple(measured["measured_micro_batches"] or ())
    record = _record_adapter.validate_python(
        {
            **{name: row[name] for name in _OWN_COLUMNS},
            "layout": _layout_columns(row),
            "measurement": measured,
            "outcome": row["outcome"],
            "prediction": _prediction_columns(row),
        }
    )
    for name in ("world_size", "data_parallel"):
        column = name if name == "world_size" else f"measured_{name}"
        if row[column] != getattr(record.layout, name):
            raise ValueError(f"{column} must be that of the layout, got {shown(row[column])}")
    if problem := why_not_measured(record.measurement, record.outcome):
        raise ValueError(problem)
    return record


def _prediction_columns(row: Mapping[str, Any]) -> dict[str, Any] | None:
    values = {name: row[f"predicted_{name}"] for name in _PREDICTION_FIELDS}
    return None if None in values.values() else values


def layout_from_row(row: Mapping[str, Any]) -> Layout:
    """The layout of a stored row."""
    return Layout(**_layout_columns(row))


def _layout_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in LAYOUT_COLUMNS}
