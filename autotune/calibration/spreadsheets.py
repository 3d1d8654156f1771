"""The spreadsheets that Hagemann et al. 2023 publish, as rows of the tidy form.

One sweep each, with model, sequence length and number of GPUs in the file name.
"""

import contextlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.calibration.rows import (
    SHAPES,
    field_of,
    model_of,
    number_of,
    refuse_repeated_columns,
)
from autotune.errors import InputError, message_of, shortened
from autotune.hardware import device_named
from autotune.inputs import LARGEST_TABLE, opened, shown

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
_FIGURE = "Average MFU"
_FIGURE_AS_TEXT = re.compile(
    r"(?P<number>(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:e[+-]?[0-9]+)?)\s*(?P<percent>%)?",
    re.IGNORECASE,
)
# What stands instead of a figure; the errors of a spreadsheet's own formulas begin with #.
_RAN_OUT = re.compile("oom|out of memory", re.IGNORECASE)
_FAILED = re.compile(
    r"error|fail|crash|kernel|unavailable|not (available|supported)|time.?out|^#|^(n/?a|nan|-|)$",
    re.IGNORECASE,
)
_FAILURES = "OOM, error, failed, crashed, kernel unavailable, timeout, n/a, -"
# More than any of them has: a cell far to the right would make every row as wide.
_MOST_COLUMNS = 256
# Global batch in sequences by sequence length: 4 million tokens (section 3 of the paper).
_BATCH = {2048: 2048, 8192: 512}


def spreadsheet_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of one of the authors' spreadsheets, with the column names of the tidy CSV form.

    The header is in the second row. Not all spreadsheets have a column of step times, so step times
    are computed from the MFU as the paper defines it.
    """
    from openpyxl.utils import get_column_letter  # slow to import

    name_parts = _SHEET_NAME.search(file.name)
    if name_parts is None or name_parts["model"].upper() not in SHAPES:
        raise InputError(
            "a spreadsheet's name must tell the model and the GPUs, such as "
            f"llama_13B_bfloat16_64_GPUs_all_runs.xlsx, got {shown(file.name)}"
        )
    length = 8192 if "8k" in file.name else 2048
    common = {
        "sweep": file.stem,
        "model": name_parts["model"].upper(),
        "sequence_length": length,
        "global_batch_size": _BATCH[length],
        "world_size": int(name_parts["gpus"]),
    }
    number_of({**common, "where": shortened(file.name)}, "world_size")
    sheet, lines = _lines(file)
    head = next(lines, None)
    if head is None:
        return []
    names = ["" if name is None else str(name) for name in head[1]]
    refuse_repeated_columns(names, f"{shortened(file.name)}, line {head[0]}")
    if _FIGURE not in names:
        raise InputError(f"{shortened(file.name)}, line {head[0]}: column {_FIGURE} is missing")
    letter = get_column_letter(names.index(_FIGURE) + 1)
    rows = []
    for number, values in lines:
        row = dict(zip(names, values, strict=False))
        row["where"] = f"{shortened(file.name)}, line {number}"
        cell = f"{shown(file.name)}, sheet {shown(sheet)}, cell {letter}{number}"
        rows.append({**common, **_tidy(row, common, cell), "line": number})
    return rows


def _lines(file: Path) -> tuple[str, Iterator[tuple[int, Sequence[Any]]]]:
    """Name of the first sheet, and its rows from the second on that are not empty, numbered."""
    import openpyxl

    try:
        with (
            opened(file, largest=LARGEST_TABLE) as content,
            warnings.catch_warnings(action="ignore"),  # of features that only look different
        ):
            unpacked = sum(part.file_size for part in zipfile.ZipFile(content).infolist())
            if unpacked > LARGEST_TABLE:
                raise InputError(
                    f"{shown(file)}: must have at most {LARGEST_TABLE} bytes unpacked, "
                    f"got {unpacked}"
                )
            workbook = openpyxl.load_workbook(content, read_only=True, data_only=True)
            with contextlib.closing(workbook):
                sheet = workbook.worksheets[0]
                rows = sheet.iter_rows(min_row=2, max_col=_MOST_COLUMNS, values_only=True)
                filled = [
                    (number, values)
                    for number, values in enumerate(rows, start=2)
                    if any(value is not None for value in values)
                ]
                return str(sheet.title), iter(filled)
    except Exception as error:  # openpyxl raises many
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {shown(file)}: {message_of(error)}") from None


def _tidy(row: Mapping[str, Any], common: Mapping[str, Any], cell: str) -> dict[str, Any]:
    where = row["where"]
    kernel = field_of(row, "kernel", where)
    if kernel not in _SHEET_KERNELS:
        known = ", ".join(_SHEET_KERNELS)
        raise InputError(f"{where}: kernel must be one of {known}, got {shown(kernel)}")
    attention, fused_norm = _SHEET_KERNELS[kernel]
    tensor = number_of(row, "model_parallel_size")
    pipeline = number_of(row, "pipe_parallel_size")
    devices = common["world_size"]
    mfu = _utilisation(row[_FIGURE], cell)
    recorded = {
        "tensor_parallel": tensor,
        "pipeline_parallel": pipeline,
        "data_parallel": max(1, devices // (tensor * pipeline)),
        "micro_batch_size": field_of(row, "micro_batch_size", where),
        "activation_checkpointing": field_of(row, "activation_checkpointing_type", where),
        "sequence_parallel": row.get("sequence_parallel") or False,
        "attention_kernel": {"math": "torch"}.get(attention, attention),
        "rmsnorm_kernel": fused_norm,
        "outcome": mfu if isinstance(mfu, str) else "ok",
    }
    if isinstance(mfu, float):
        model = model_of({**common, "where": where})
        device = device_named("a100-80gb")
        assert device.peak_bf16_tflops is not None
        rate = mfu * device.peak_bf16_tflops * 1e12 * devices / model.model_flops_per_token
        recorded["step_seconds"] = model.tokens_per_step / rate
    return recorded


def _utilisation(value: object, cell: str) -> float | str:
    """The MFU in a cell, above 0 and up to 1; or the outcome "oom" or "error" of a run without one.

    Figures may be text: with a point or a comma before the decimals, and with a per cent sign. An
    empty cell and 0 are a run that did not work. Raises InputError for anything else.
    """
    mfu: float | None = None
    match value:
        case bool():
            pass
        case None:
            return "error"
        case int() | float():
            mfu = float(value)
        case str() if found := _FIGURE_AS_TEXT.fullmatch(value.strip()):
            mfu = float(found["number"].replace(",", "."))
            if found["percent"]:
                mfu /= 100
        case str() if _RAN_OUT.search(value):
            return "oom"
        case str() if _FAILED.search(value.strip()):
            return "error"
    if mfu is None or not 0 <= mfu <= 1:
        raise InputError(
            f"{cell}: {_FIGURE} must be a number from 0 to 1, a percentage, or say what failed "
            f"({_FAILURES}), got {shown(value)}"
        )
    return mfu or "error"
