"""`python -m trainables.deepspeed_llm`, run directly and under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.layout import Layout
from autotune.model import Model, model_from_mapping
from autotune.options.command_line import command_line
from tests.trainables.reference import plain_training
from trainables.deepspeed_llm import __main__ as command

MODEL = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "sequence_length": 16,
    "global_batch_size": 8,
}
WORKER = "trainables.deepspeed_llm"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(*arguments: str, torchrun: bool = False) -> tuple[int, list[dict[str, Any]], str]:
    launcher = TORCHRUN if torchrun else ()
    process = subprocess.run(
        [sys.executable, *launcher, "-m", WORKER, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = process.stdout.splitlines()
    return process.returncode, [json.loads(line) for line in lines], process.stderr


def expected_losses() -> list[float]:
    model: Model = model_from_mapping(MODEL)
    return plain_training(model, 3)[0]


@pytest.mark.parametrize("torchrun", [False, True])
def test_steps_and_summary(torchrun: bool, tmp_path: Path) -> None:
    layout = tmp_path / "layout.json"
    layout.write_text(json.dumps({"tensor_parallel": 2, "sequence_parallel": True}))
    arguments = ("--layout", str(layout), "--model", json.dumps(MODEL), "--steps", "3")
    status, lines, errors = run(*arguments, torchrun=torchrun)
    assert status == 0, errors
    *steps, summary = lines
    assert [set(step) for step in steps] == [{"step", "loss", "grad_norm", "step_seconds"}] * 3
    assert [step["loss"] for step in steps] == pytest.approx(expected_losses(), abs=1e-5)
    assert summary["summary"] is True and summary["outcome"] == "ok"
    assert summary["losses"] == [step["loss"] for step in steps]
    timed = sorted(step["step_seconds"] for step in steps[1:])
    assert summary["step_seconds"] == pytest.approx(sum(timed) / 2)
    assert summary["peak_memory_gib"] > 0 and summary["mfu"] is None


@pytest.mark.parametrize("torchrun", [pytest.param(False, marks=pytest.mark.slow), True])
def test_out_of_memory_is_a_result(torchrun: bool) -> None:
    layout = json.dumps({"data_parallel": 2})
    model = json.dumps({**MODEL, "sequence_length": 2048})
    arguments = ("--layout", layout, "--model", model, "--steps", "2", "--memory-gib", "0.02")
    status, lines, errors = run(*arguments, torchrun=torchrun)
    assert status == 0, errors
    assert lines[-1]["outcome"] == "oom" and lines[-1]["step_seconds"] is None, lines[-1]
    assert lines[-1]["reason"].startswith("rank ")


@pytest.mark.parametrize(
    ("layout", "more", "sentence"),
    [
        ('{"tensor_parallel": 3}', (), "tensor_parallel must divide num_attention_heads"),
        ('{"speed": 3}', (), "layout: unknown key speed"),
        ('{"pipeline_parallel": 2, "zero_stage": 2}', (), "needs zero_stage 0 or 1"),
        ("{}", ("--steps", "0"), "--steps"),
        ("{}", ("--warmup", "2"), "--warmup must be less than --steps, got 2 and 2"),
        ("{}", ("--data", "/no/such"), "--data: no such file or folder"),
        ('{"attention_kernel": "flash_attn"}', (), "attention_kernel must be one of"),
        (str(Layout()), (), "layout: cannot read"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    layout: str, more: tuple[str, ...], sentence: str
) -> None:
    arguments = ("--layout", layout, "--model", json.dumps(MODEL), "--steps", "2", *more)
    status, lines, errors = run(*arguments)
    assert status == 2 and lines == []
    assert errors.count("\n") == 1 and errors.startswith("error: ") and sentence in errors


@pytest.mark.parametrize(
    ("gpus", "layout", "options", "sentence"),
    [
        (1, {"data_parallel": 2}, (), "needs 2 GPUs, this machine has 1"),
        (0, {"data_parallel": 2}, ("--share-gpus",), "needs 2 GPUs, this machine has 0"),
        (1, {"pipeline_parallel": 2}, ("--share-gpus",), "must be without pipeline stages"),
    ],
)
def test_ranks_share_gpus_only_when_asked_to_and_able_to(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gpus: int,
    layout: dict[str, int],
    options: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.setattr(command, "local_gpus", lambda: gpus)
    arguments = ["--device", "gpu", "--gpu", "h200", "--steps", "1", *options]
    arguments += ["--layout", json.dumps(layout), "--model", json.dumps(MODEL)]
    assert command_line(command.main, arguments) == 2
    assert sentence in capsys.readouterr().err
