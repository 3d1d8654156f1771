"""Published runs: rows become trainings, or say why they cannot."""

import csv
from pathlib import Path
from typing import Any

import pytest

from autotune.calibration.published_runs import COLUMNS, PublishedRun, read_published_runs
from autotune.errors import InputError

ROW: dict[str, Any] = {
    **dict.fromkeys(COLUMNS, ""),
    "id": "r1",
    "source": "somebody",
    "hardware": "h100",
    "gpus": 32,
    "gpus_per_node": 8,
    "nodes": 4,
    "layers": 32,
    "hidden": 4096,
    "heads": 32,
    "kv_heads": 8,
    "ffn": 14336,
    "ffn_gated": 1,
    "tied_embeddings": 0,
    "vocab": 128_256,
    "sequence_tokens": 8192,
    "global_batch_sequences": 128,
    "micro_batch_sequences": 1,
    "tp": 2,
    "pp": 1,
    "vp": 1,
    "cp": 1,
    "dp": 16,
    "zero_stage": 1,
    "sharding_as_published": "Megatron distributed optimizer",
    "checkpointing": "none",
    "sequence_parallel": 1,
    "attention_kernel": "sdpa_cudnn",
    "norm": "fused",
    "torch_compile": 0,
    "dtype": "bf16",
    "step_seconds": 5.5,
    "oom": 0,
    "nvlink_gb_s_both_ways": 900,
    "network_gbit_s_per_gpu": 400,
    "status": "direct",
}


def written(file: Path, *rows: dict[str, Any]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return file


def read(tmp_path: Path, **changes: Any) -> PublishedRun:
    (run,) = read_published_runs(written(tmp_path / "runs.csv", {**ROW, **changes}))
    return run


def test_a_row_is_a_training(tmp_path: Path) -> None:
    run = read(tmp_path)
    assert run.training is not None and run.why_not is None and run.clean
    training = run.training
    assert training.layout.describe() == (
        "tp2+sp pp1 dp16 zero1 mb1 ckpt=none sdpa_cudnn rmsnorm=fused"
    )
    assert training.layout.gradient_accumulation_steps == 8
    assert training.trainer == "megatron"
    assert training.cluster.describe() == "4 nodes of 8 h100"
    links = training.cluster.links
    assert (links.link_gb_per_second, links.node_gb_per_second(8)) == (450, 400)
    assert 8.0e9 < training.model.parameters < 8.1e9


@pytest.mark.parametrize(
    ("text", "trainer"),
    [
        ("FSDP FULL_SHARD, amp_bf16 DEFAULT", "fsdp2"),
        ("FSDP2", "fsdp2"),
        ("Megatron-DeepSpeed ZeRO 1, fp16", "deepspeed"),
        ("Megatron-DeepSpeed ZeRO 1, bf16 with fp32 gradients", "deepspeed_fp32_gradients"),
        ("NeMo distributed optimizer, overlapped", "nemo"),
        ("Megatron distributed optimizer", "megatron"),
        ("", "megatron"),
    ],
)
def test_the_trainer_is_what_was_published(tmp_path: Path, text: str, trainer: str) -> None:
    run = read(tmp_path, sharding_as_published=text)
    assert run.training is not None and run.training.trainer == trainer


def test_figures_of_the_device_may_be_given(tmp_path: Path) -> None:
    run = read(tmp_path, hardware="a100-80gb", device_memory_gib=40, device_memory_gb_s=1555)
    assert run.training is not None
    device = run.training.cluster.device
    assert (device.memory_gib, device.memory_gb_per_second) == (40, 1555)


@pytest.mark.parametrize(
    ("changes", "why_not"),
    [
        ({"dtype": "fp8"}, "dtype must be bf16 or fp16, got 'fp8'"),
        ({"hardware": "abacus"}, "device must be one of "),
        ({"checkpointing": "layer"}, "activation_checkpointing must be 'none', 'selective' or"),
        ({"status": "no", "why_not": "FP8"}, "FP8"),
        ({"micro_batch_sequences": 7}, "data_parallel \\* micro_batch_size must divide"),
        ({"layers": ""}, "layers is missing"),
        ({"zero_stage": "1.0"}, "zero_stage must be a whole number from 0 to 3, got '1.0'"),
    ],
)
def test_what_cannot_be_said_has_its_reason(
    tmp_path: Path, changes: dict[str, Any], why_not: str
) -> None:
    run = read(tmp_path, **changes)
    assert run.training is None and not run.clean
    with pytest.raises(InputError, match=why_not):
        raise InputError(run.why_not or "")


@pytest.mark.parametrize(
    ("changes", "clean"),
    [
        ({"status": "stand-in"}, True),
        ({"status": "as-if", "cp": 2, "dp": 8}, False),
        ({"doubt": "table says PP=41"}, False),
        ({"step_seconds": "", "oom": 1}, False),
    ],
)
def test_only_clean_rows_judge(tmp_path: Path, changes: dict[str, Any], clean: bool) -> None:
    run = read(tmp_path, **changes)
    assert run.training is not None and run.clean is clean
    assert run.ran_out_of_memory is ("oom" in changes)


def test_a_file_without_a_column_or_a_run_is_refused(tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "tp"}
    with pytest.raises(InputError, match="column tp is missing"):
        read_published_runs(written(tmp_path / "runs.csv", row))
    empty = tmp_path / "empty.csv"
    empty.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="no run in "):
        read_published_runs(empty)
    with pytest.raises(InputError, match="step_seconds must be a number"):
        read(tmp_path, step_seconds="fast")
