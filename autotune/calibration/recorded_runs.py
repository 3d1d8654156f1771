"""Published measurements: the sweeps of Hagemann et al. 2023 (arXiv 2311.05610).

Reads tidy CSV files with one or more sweeps each, and the spreadsheets that the authors publish
(`autotune.calibration.spreadsheets`).
"""

import collections
import csv
import dataclasses
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.calibration.rows import (
    choice_of,
    flag_of,
    model_of,
    name_of,
    number_of,
    positive_of,
    refuse_repeated_columns,
)
from autotune.calibration.spreadsheets import spreadsheet_rows
from autotune.cluster import Cluster
from autotune.cost.trainers import StatedTrainer
from autotune.errors import InputError, first_line, in_field, shortened
from autotune.hardware import device_named, network_named
from autotune.inputs import LARGEST_TABLE, opened, shown, validated
from autotune.layout import Layout, layout_from_mapping, why_illegal
from autotune.model import Model, Precision
from autotune.trial.trial import Outcome

_GPUS_PER_NODE = 8
_NETWORK = "hagemann2023"
_KERNELS = {"torch": "math", "megatron": "megatron", "flash1": "flash1", "flash2": "flash2"}
_CHECKPOINTING = {"none": "none", "disabled": "none", "every_layer": "full"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """The recorded result of one layout."""

    layout: Layout
    outcome: Outcome
    """ok, oom or crashed."""
    step_seconds: float | None
    """Mean step time over repetitions; null unless ok."""
    peak_memory_gib: float | None = None
    """Null where it was not recorded."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Recorded runs of one model on one cluster, one per layout."""

    name: str
    model: Model
    precision: Precision
    cluster: Cluster
    trainer: StatedTrainer
    """The training code that ran them."""
    runs: tuple[RecordedRun, ...]

    @property
    def timed(self) -> list[RecordedRun]:
        """The runs that have a step time."""
        return [run for run in self.runs if run.step_seconds is not None]

    @property
    def best_seconds(self) -> float:
        """Step time of the fastest layout."""
        return min(run.step_seconds for run in self.timed if run.step_seconds is not None)


def read_sweeps(path: Path) -> list[Sweep]:
    """The sweeps of a CSV or .xlsx file, or of all such files of a folder.

    Raises InputError for the field `runs`.
    """
    with in_field("runs"):
        return _read_sweeps(path)


def _read_sweeps(path: Path) -> list[Sweep]:
    try:
        if path.is_dir():
            files = sorted(
                file
                for file in path.iterdir()
                # Excel's lock files of open spreadsheets begin with ~$.
                if file.suffix.lower() in (".csv", ".xlsx") and not file.name.startswith("~$")
            )
            if not files:
                raise InputError(f"no .csv or .xlsx file in {shown(path)}")
        elif path.exists():
            files = [path]
        else:
            raise InputError(f"no such file or folder: {shown(path)}")
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {error.strerror}") from None
    sweeps = [sweep for file in files for sweep in _read_file(file)]
    repeated = [name for name, n in collections.Counter(s.name for s in sweeps).items() if n > 1]
    if repeated:
        raise InputError(f"sweep {repeated[0]} is in more than one file of {shown(path)}")
    return sweeps


def _read_file(file: Path) -> list[Sweep]:
    match file.suffix.lower():
        case ".xlsx":
            rows = spreadsheet_rows(file)
        case ".csv":
            rows = _csv_rows(file)
        case _:
            raise InputError(f"must be a .csv or .xlsx file, got {shown(file)}")
    by_sweep: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        where = f"{shortened(file.name)}, line {row['line']}"
        by_sweep[name_of(row, "sweep", where)].append({**row, "where": where})
    if not by_sweep:
        raise InputError(f"no run in {shown(file)}")
    return [_sweep(name, sweep_rows) for name, sweep_rows in by_sweep.items()]


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    """Rows by column name, with the number of their line under `line`."""
    rows = []
    try:
        with opened(file, largest=LARGEST_TABLE) as content:
            reader = csv.DictReader(io.TextIOWrapper(content, "utf-8-sig", newline=""))
            refuse_repeated_columns(reader.fieldnames or [], f"{shortened(file.name)}, line 1")
            for row in reader:
                rows.append({**row, "line": reader.line_num})
                if None in row:  # where DictReader puts what is left
                    raise InputError(
                        f"{shortened(file.name)}, line {reader.line_num}: must have as many cells "
                        f"as line 1, got {shown(row[None])} after them"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {shown(file)}: {first_line(error)}") from None
    return rows


def _sweep(name: str, rows: Sequence[Mapping[str, Any]]) -> Sweep:
    first = rows[0]
    model = model_of(first)
    devices = number_of(first, "world_size")
    nodes, remainder = divmod(devices, _GPUS_PER_NODE)
    if remainder or not nodes:
        raise InputError(
            f"{first['where']}: world_size must be a multiple of {_GPUS_PER_NODE}, got {devices}"
        )
    cluster = validated(
        Cluster,
        {
            "nodes": nodes,
            "gpus_per_node": _GPUS_PER_NODE,
            "device": device_named("a100-80gb"),
            "network": network_named(_NETWORK),
        },
        what=first["where"],
    )
    runs_by_layout: dict[Layout, list[RecordedRun]] = collections.defaultdict(list)
    for row in rows:
        if model_of(row) != model or number_of(row, "world_size") != devices:
            raise InputError(f"{row['where']}: sweep {name} must have one model and one cluster")
        run = _run(row, model)
        if run is not None:
            _refuse_impossible_layout(run.layout, model, "bf16", cluster, row["where"])
            _refuse_impossible_time(run, model, cluster, row["where"])
            runs_by_layout[run.layout].append(run)
    return Sweep(
        name=name,
        model=model,
        precision="bf16",
        cluster=cluster,
        trainer="hagemann2023",
        runs=tuple(_merged(layout, runs) for layout, runs in runs_by_layout.items()),
    )


def _refuse_impossible_layout(
    layout: Layout, model: Model, precision: Precision, cluster: Cluster, where: str
) -> None:
    """Raise InputError where the layout cannot have run, for `where` it is recorded."""
    layout_from_mapping(layout.columns(), model, what=where)  # does it make the global batch?
    if layout.world_size != cluster.devices:
        raise InputError(
            f"{where}: tensor_parallel * pipeline_parallel * data_parallel must be the "
            f"{cluster.devices} devices of the cluster, got {layout.world_size}"
        )
    if reason := why_illegal(layout, model, precision):
        raise InputError(f"{where}: {reason}")


def _refuse_impossible_time(run: RecordedRun, model: Model, cluster: Cluster, where: str) -> None:
    """Raise InputError where the run would have had an MFU above 1."""
    peak = cluster.device.peak_bf16_tflops
    assert peak is not None
    flops = model.tokens_per_step * model.model_flops_per_token
    shortest = flops / (peak * 1e12 * cluster.devices)
    if run.step_seconds is not None and run.step_seconds < shortest * (1 - 1e-9):
        raise InputError(
            f"{where}: step_seconds must be at least {shortest:.3g}, which the arithmetic takes at "
            f"the peak of {cluster.device.name}, got {run.step_seconds:g}"
        )


def _merged(layout: Layout, runs: Sequence[RecordedRun]) -> RecordedRun:
    """Merge repetitions: the mean time of those that ran; else out of memory; else crashed."""
    seconds = [run.step_seconds for run in runs if run.step_seconds is not None]
    if seconds:
        return RecordedRun(
            layout=layout, outcome=Outcome.OK, step_seconds=statistics.fmean(seconds)
        )
    return next((run for run in runs if run.outcome is Outcome.OOM), runs[0])


def _run(row: Mapping[str, Any], model: Model) -> RecordedRun | None:
    """The run of a row; None where the kernel does not support the model's shape."""
    where = row["where"]
    outcome = choice_of(row, "outcome", ("ok", "oom", "kernel_na", "error"))
    if outcome == "kernel_na":
        return None
    tensor = number_of(row, "tensor_parallel")
    layout = layout_from_mapping(
        {
            "tensor_parallel": tensor,
            "pipeline_parallel": number_of(row, "pipeline_parallel"),
            "data_parallel": number_of(row, "data_parallel"),
            "micro_batch_size": number_of(row, "micro_batch_size"),
            "zero_stage": 1,
            "activation_checkpointing": _CHECKPOINTING[
                choice_of(row, "activation_checkpointing", _CHECKPOINTING)
            ],
            "sequence_parallel": flag_of(row, "sequence_parallel") and tensor > 1,
            "attention_kernel": _KERNELS[choice_of(row, "attention_kernel", _KERNELS)],
            "rmsnorm_kernel": "fused" if flag_of(row, "rmsnorm_kernel") else "plain",
        },
        model,
        what=where,
    )
    if outcome != "ok":
        failed = Outcome.OOM if outcome == "oom" else Outcome.CRASHED
        return RecordedRun(layout=layout, outcome=failed, step_seconds=None)
    seconds = positive_of(row, "step_seconds")
    return RecordedRun(layout=layout, outcome=Outcome.OK, step_seconds=seconds)
