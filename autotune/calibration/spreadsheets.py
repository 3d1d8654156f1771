"""The spreadsheets that Hagemann et al. 2023 publish, as rows of the tidy form.

One sweep each, with model, sequence length and number of GPUs in the file name.
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.calibration.rows import SHAPES, field_of, model_of, number_of
from autotune.errors import InputError
from autotune.hardware import device_named
from autotune.inputs import shown

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


def spreadsheet_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of one of the authors' spreadsheets, with the column names of the tidy CSV form.

    The header is in the second row. Not all spreadsheets have a column of step times, so step times
    are computed from the MFU as the paper defines it.
    """
    import openpyxl

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
    try:
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
        with contextlib.closing(workbook):
            lines = list(workbook.worksheets[0].iter_rows(min_row=2, values_only=True))
    except Exception as error:
        raise InputError(f"cannot read {shown(file)}: {error}") from None
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
    kernel = field_of(row, "kernel", where)
    if kernel not in _SHEET_KERNELS:
        known = ", ".join(_SHEET_KERNELS)
        raise InputError(f"{where}: kernel must be one of {known}, got {shown(kernel)}")
    attention, fused_norm = _SHEET_KERNELS[kernel]
    tensor = number_of(row, "model_parallel_size")
    pipeline = number_of(row, "pipe_parallel_size")
    devices = common["world_size"]
    mfu = row.get("Average MFU")
    mfu = float(mfu) if isinstance(mfu, int | float) and not isinstance(mfu, bool) else mfu
    ran = isinstance(mfu, float) and mfu > 0
    recorded = {
        "tensor_parallel": tensor,
        "pipeline_parallel": pipeline,
        "data_parallel": max(1, devices // (tensor * pipeline)),
        "micro_batch_size": field_of(row, "micro_batch_size", where),
        "activation_checkpointing": field_of(row, "activation_checkpointing_type", where),
        "sequence_parallel": row.get("sequence_parallel") or False,
        "attention_kernel": {"math": "torch"}.get(attention, attention),
        "rmsnorm_kernel": fused_norm,
        "outcome": "ok" if ran else ("oom" if "oom" in str(mfu).lower() else "error"),
    }
    if isinstance(mfu, float) and ran:
        if mfu > 1:
            raise InputError(f"{where}: Average MFU must be between 0 and 1, got {mfu}")
        model = model_of({**common, "where": where})
        device = device_named("a100-80gb")
        assert device.peak_bf16_tflops is not None
        rate = mfu * device.peak_bf16_tflops * 1e12 * devices / model.model_flops_per_token
        recorded["step_seconds"] = model.tokens_per_step / rate
    return recorded
