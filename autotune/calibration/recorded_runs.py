"""Published measurements: the sweeps of Hagemann et al. 2023 (arXiv 2311.05610).

Reads tidy CSV files with one or more sweeps each, and the spreadsheets that the authors publish:
one sweep each, with model, sequence length and number of GPUs in the file name.
"""

import collections
import contextlib
import csv
import dataclasses
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.cluster import Cluster
from autotune.errors import InputError, in_field
from autotune.hardware import device_named
from autotune.inputs import LARGEST_COUNT, shown
from autotune.layout import Layout, layout_from_mapping, why_illegal
from autotune.model import Model, Precision
from autotune.trial.trial import Outcome

_GPUS_PER_NODE = 8
_VOCABULARY = 128_000
# Blocks, width, heads, feed-forward width: table 1 of the paper and its model configurations.
_SHAPES = {
    "13B": (40, 5120, 40, 13824),
    "30B": (60, 6656, 52, 17888),
    "65B": (80, 8192, 64, 22016),
}
_KERNELS = {"torch": "math", "megatron": "megatron", "flash1": "flash1", "flash2": "flash2"}
_CHECKPOINTING = {"none": "none", "disabled": "none", "every_layer": "full"}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# The spreadsheets' names of kernels: (attention, fused RMSNorm).
_SHEET_KERNELS = {
    "torch": ("math", False),
    "fused": ("megatron", False),
    "flash_attention": ("flash1", False),
    "flash_attentionv1.0.8": ("flash1", False),
    "flash_attention2": ("flash2", False),
    "flash_attention2 + RMS kernel": ("flash2", True),
}
_SHEET_NAME = re.compile(r"llama_(?P<model>\d+B)_.*?(?P<gpus>\d+)_GPUs", re.IGNORECASE)
# Global batch in sequences by sequence length: 4 million tokens (section 3 of the paper).
_BATCH = {2048: 2048, 8192: 512}


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
    trainer: str
    """The training code that ran them (a name of `autotune.cost.trainers`)."""
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
                raise InputError(f"no .csv or .xlsx file in {str(path)!r}")
        elif path.is_file():
            files = [path]
        else:
            raise InputError(f"no such file or folder: {str(path)!r}")
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    sweeps = [sweep for file in files for sweep in _read_file(file)]
    repeated = [name for name, n in collections.Counter(s.name for s in sweeps).items() if n > 1]
    if repeated:
        raise InputError(f"sweep {repeated[0]} is in more than one file of {str(path)!r}")
    return sweeps


def _read_file(file: Path) -> list[Sweep]:
    if file.suffix.lower() == ".xlsx":
        rows: Iterable[dict[str, Any]] = _sheet_rows(file)
    elif file.suffix.lower() == ".csv":
        try:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                rows = list(csv.DictReader(lines))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"cannot read {str(file)!r}: {error}") from None
    else:
        raise InputError(f"must be a .csv or .xlsx file, got {str(file)!r}")
    by_sweep: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for number, row in enumerate(rows, start=2):
        where = f"{file.name}, line {row.get('line', number)}"
        by_sweep[str(_field(row, "sweep", where))].append({**row, "where": where})
    if not by_sweep:
        raise InputError(f"no run in {str(file)!r}")
    return [_sweep(name, sweep_rows) for name, sweep_rows in by_sweep.items()]


def _sweep(name: str, rows: Sequence[Mapping[str, Any]]) -> Sweep:
    first = rows[0]
    model = _model(first)
    devices = _number(first, "world_size")
    nodes, remainder = divmod(devices, _GPUS_PER_NODE)
    if remainder or not nodes:
        raise InputError(
            f"{first['where']}: world_size must be a multiple of {_GPUS_PER_NODE}, got {devices}"
        )
    runs_by_layout: dict[Layout, list[RecordedRun]] = collections.defaultdict(list)
    for row in rows:
        if _model(row) != model or _number(row, "world_size") != devices:
            raise InputError(f"{row['where']}: sweep {name} must have one model and one cluster")
        run = _run(row, model)
        if run is not None and run.layout.world_size != devices:
            raise InputError(
                f"{row['where']}: tensor_parallel * pipeline_parallel * data_parallel must be "
                f"world_size {devices}, got {run.layout.world_size}"
            )
        if run is not None and (reason := why_illegal(run.layout, model, "bf16")):
            raise InputError(f"{row['where']}: {reason}")
        if run is not None:
            runs_by_layout[run.layout].append(run)
    return Sweep(
        name=name,
        model=model,
        precision="bf16",
        cluster=Cluster(
            nodes=nodes, gpus_per_node=_GPUS_PER_NODE, device=device_named("a100-80gb")
        ),
        trainer="hagemann2023",
        runs=tuple(_merged(layout, runs) for layout, runs in runs_by_layout.items()),
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
    outcome = _choice(row, "outcome", ("ok", "oom", "kernel_na", "error"))
    if outcome == "kernel_na":
        return None
    tensor = _number(row, "tensor_parallel")
    layout = layout_from_mapping(
        {
            "tensor_parallel": tensor,
            "pipeline_parallel": _number(row, "pipeline_parallel"),
            "data_parallel": _number(row, "data_parallel"),
            "micro_batch_size": _number(row, "micro_batch_size"),
            "zero_stage": 1,
            "activation_checkpointing": _CHECKPOINTING[
                _choice(row, "activation_checkpointing", _CHECKPOINTING)
            ],
            "sequence_parallel": tensor > 1 and _flag(row, "sequence_parallel"),
            "attention_kernel": _KERNELS[_choice(row, "attention_kernel", _KERNELS)],
            "rmsnorm_kernel": "fused" if _flag(row, "rmsnorm_kernel") else "plain",
        },
        model,
        what=where,
    )
    if outcome != "ok":
        failed = Outcome.OOM if outcome == "oom" else Outcome.CRASHED
        return RecordedRun(layout=layout, outcome=failed, step_seconds=None)
    seconds = _positive(row, "step_seconds")
    return RecordedRun(layout=layout, outcome=Outcome.OK, step_seconds=seconds)


def _model(row: Mapping[str, Any]) -> Model:
    blocks, hidden, heads, inner = _SHAPES[_choice(row, "model", _SHAPES)]
    return Model(
        num_hidden_layers=blocks,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=_VOCABULARY,
        sequence_length=_number(row, "sequence_length"),
        global_batch_size=_number(row, "global_batch_size"),
        precision="bf16",
    )


def _sheet_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of one of the authors' spreadsheets, with the column names of the tidy CSV form.

    The header is in the second row. Not all spreadsheets have a column of step times, so step times
    are computed from the MFU as the paper defines it.
    """
    import openpyxl

    name_parts = _SHEET_NAME.search(file.name)
    if name_parts is None or name_parts["model"].upper() not in _SHAPES:
        raise InputError(
            "a spreadsheet's name must tell the model and the GPUs, such as "
            f"llama_13B_bfloat16_64_GPUs_all_runs.xlsx, got {file.name!r}"
        )
    length = 8192 if "8k" in file.name else 2048
    common = {
        "sweep": file.stem,
        "model": name_parts["model"].upper(),
        "sequence_length": length,
        "global_batch_size": _BATCH[length],
        "world_size": int(name_parts["gpus"]),
    }
    try:
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
        with contextlib.closing(workbook):
            lines = list(workbook.worksheets[0].iter_rows(min_row=2, values_only=True))
    except Exception as error:
        raise InputError(f"cannot read {str(file)!r}: {error}") from None
    names = [str(name) for name in lines[0]] if lines else []
    rows = []
    for number, values in enumerate(lines[1:], start=3):
        if any(value is not None for value in values):
            row = dict(zip(names, values, strict=False))
            tidy = _tidy(row, common, f"{file.name}, line {number}")
            rows.append({**common, **tidy, "line": number})
    return rows


def _tidy(row: Mapping[str, Any], common: Mapping[str, Any], where: str) -> dict[str, Any]:
    row = {**row, "where": where}
    kernel = _field(row, "kernel", where)
    if kernel not in _SHEET_KERNELS:
        known = ", ".join(_SHEET_KERNELS)
        raise InputError(f"{where}: kernel must be one of {known}, got {kernel!r}")
    attention, fused_norm = _SHEET_KERNELS[kernel]
    tensor = _number(row, "model_parallel_size")
    pipeline = _number(row, "pipe_parallel_size")
    devices = common["world_size"]
    mfu = row.get("Average MFU")
    mfu = float(mfu) if isinstance(mfu, int | float) and not isinstance(mfu, bool) else mfu
    ran = isinstance(mfu, float) and mfu > 0
    recorded = {
        "tensor_parallel": tensor,
        "pipeline_parallel": pipeline,
        "data_parallel": max(1, devices // (tensor * pipeline)),
        "micro_batch_size": _field(row, "micro_batch_size", where),
        "activation_checkpointing": _field(row, "activation_checkpointing_type", where),
        "sequence_parallel": row.get("sequence_parallel") or False,
        "attention_kernel": {"math": "torch"}.get(attention, attention),
        "rmsnorm_kernel": fused_norm,
        "outcome": "ok" if ran else ("oom" if "oom" in str(mfu).lower() else "error"),
    }
    if isinstance(mfu, float) and ran:
        if mfu > 1:
            raise InputError(f"{where}: Average MFU must be between 0 and 1, got {mfu}")
        model = _model({**common, "where": where})
        device = device_named("a100-80gb")
        assert device.peak_bf16_tflops is not None
        rate = mfu * device.peak_bf16_tflops * 1e12 * devices / model.model_flops_per_token
        recorded["step_seconds"] = model.tokens_per_step / rate
    return recorded


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
    value = row.get(name)
    if value is None or value == "":
        raise InputError(f"{where}: {name} is missing")
    return value


def _number(row: Mapping[str, Any], name: str) -> int:
    value = _field(row, name, row["where"])
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if not 1 <= number <= LARGEST_COUNT:
        raise InputError(
            f"{row['where']}: {name} must be a whole number from 1 to {LARGEST_COUNT}, "
            f"got {shown(value)}"
        )
    return number


def _positive(row: Mapping[str, Any], name: str) -> float:
    value = _field(row, name, row["where"])
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise InputError(f"{row['where']}: {name} must be a positive number, got {value!r}")
    return number


def _flag(row: Mapping[str, Any], name: str) -> bool:
    value = str(_field(row, name, row["where"])).lower()
    if value not in _BOOLEANS:
        raise InputError(f"{row['where']}: {name} must be True or False, got {value!r}")
    return _BOOLEANS[value]


def _choice(row: Mapping[str, Any], name: str, known: Iterable[str]) -> str:
    value = str(_field(row, name, row["where"]))
    if value not in known:
        raise InputError(f"{row['where']}: {name} must be one of {', '.join(known)}, got {value!r}")
    return value
