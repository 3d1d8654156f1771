"""`python -m trainables.deepspeed_llm`, run directly and under torchrun."""

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from autotune.layout import Layout
from autotune.model import Model
from autotune.models import model_from_mapping
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


def run(
    *arguments: str, torchrun: bool = False, environment: Mapping[str, str] | None = None
) -> tuple[int, list[dict[str, Any]], str]:
    launcher = TORCHRUN if torchrun else ()
    process = subprocess.run(
        [sys.executable, *launcher, "-m", WORKER, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
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
    status, lines, errors = run(*arguments, "--trace-steps", "1", torchrun=torchrun)
    assert status == 0, errors
    *steps, first, second, summary = lines
    for rank, line in enumerate((first, second)):
        assert line["trace"] is True and line["rank"] == rank
        forwards = [done[:3] for done in line["intervals"] if done[1] == "forward"]
        assert forwards == [[2, "forward", micro_batch] for micro_batch in range(8)]
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


@pytest.mark.parametrize("torchrun", [False, True])
def test_a_failure_has_status_1_if_that_is_asked_for(torchrun: bool) -> None:
    layout, model = json.dumps({"data_parallel": 2}), json.dumps({**MODEL, "sequence_length": 2048})
    arguments = ("--layout", layout, "--model", model, "--steps", "2", "--memory-gib", "0.02")
    status, lines, errors = run(*arguments, "--fail", torchrun=torchrun)
    assert status == 1, errors
    assert lines[-1]["outcome"] == "oom"
    arguments = ("--layout", layout, "--model", json.dumps(MODEL), "--steps", "2")
    status, lines, errors = run(*arguments, "--fail", torchrun=torchrun)
    assert status == 0 and lines[-1]["outcome"] == "ok", errors


ONE_OF_ONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29511",
}
ONE_RANK = ("--layout", "{}", "--model", json.dumps(MODEL), "--steps", "1")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RANK": "x"}, "environment: RANK must be a valid integer, unable to parse"),
        ({"RANK": "7"}, "environment: RANK must be below WORLD_SIZE 1, got 7"),
        ({"RANK": "-1"}, "environment: RANK must be greater than or equal to 0, got '-1'"),
        ({"RANK": "9" * 5000}, "environment: RANK must be"),
        ({"WORLD_SIZE": "0"}, "environment: WORLD_SIZE must be greater than or equal to 1"),
        ({"WORLD_SIZE": "2"}, "layout: needs 1 ranks, torchrun started 2"),
        ({"LOCAL_RANK": "-1"}, "environment: LOCAL_RANK must be greater than or equal to 0"),
        ({"LOCAL_RANK": "1"}, "environment: LOCAL_RANK must be below WORLD_SIZE 1, got 1"),
        ({"LOCAL_RANK": ""}, "environment: LOCAL_RANK must be a valid integer"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK must be below LOCAL_WORLD_SI"),
        ({"LOCAL_WORLD_SIZE": "two"}, "environment: LOCAL_WORLD_SIZE must be a valid integer"),
        ({"MASTER_PORT": "abc"}, "environment: MASTER_PORT must be a valid integer"),
        ({"MASTER_PORT": "0"}, "environment: MASTER_PORT must be greater than or equal to 1"),
        ({"MASTER_PORT": "65536"}, "environment: MASTER_PORT must be less than or equal to 65535"),
        ({"MASTER_ADDR": ""}, "environment: MASTER_ADDR must"),
        ({"RANK": None}, "RANK must be set too, or LOCAL_RANK unset"),
        ({"MASTER_PORT": None, "WORLD_SIZE": None}, "WORLD_SIZE and MASTER_PORT must be set too"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_place_among_ranks_that_cannot_be_is_one_line(
    variables: dict[str, str | None],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("trainables.deepspeed_llm.torchrun.run_as_one_rank", must_not_start)
    monkeypatch.setattr(command, "_run_here", must_not_start)
    for name, value in {**ONE_OF_ONE, **variables}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert command_line(command.main, ONE_RANK) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and sentence in errors and errors.count("\n") == 1


def must_not_start(*_: object, **__: object) -> None:
    raise AssertionError("something was started")


def test_variables_that_name_no_rank_are_not_a_launchers() -> None:
    environment = {"MASTER_ADDR": "somewhere", "WORLD_SIZE": "8"}
    status, lines, errors = run(*ONE_RANK, environment=environment)
    assert status == 0 and lines[-1]["outcome"] == "ok", errors


@pytest.mark.parametrize(("more", "status"), [((), 0), (("--fail",), 1)])
def test_a_rendezvous_whose_port_is_taken_is_a_failure_that_is_told(
    more: tuple[str, ...], status: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run(*ONE_RANK, *more, environment={**ONE_OF_ONE, "MASTER_PORT": port})
    assert ended[0] == status and [line["outcome"] for line in ended[1]] == ["crashed"]


@pytest.mark.parametrize("streams", ["> /dev/full", ">&-"])
@pytest.mark.parametrize("environment", [{}, ONE_OF_ONE], ids=["alone", "as a rank"])
def test_results_that_cannot_be_printed_are_an_error(
    environment: dict[str, str], streams: str
) -> None:
    words = shlex.join([sys.executable, "-m", WORKER, *ONE_RANK])
    process = subprocess.run(
        ["bash", "-c", f"{words} {streams}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert process.returncode == 2, process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: the standard output cannot be writt")
    assert "Traceback" not in process.stderr


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
