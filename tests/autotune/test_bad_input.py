"""Bad input is one line that names the field, the rule and the value, and nothing is started."""

import ast
import copy
import csv
import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import autotune.commands.calibrate
import autotune.commands.pipeline
import autotune.commands.plan
import autotune.commands.run
import autotune.commands.scale
import autotune.commands.trace
import autotune.commands.try_
import trainables.deepspeed_llm.__main__
import trainables.deepspeed_llm.training.__main__
from autotune.cluster import Cluster
from autotune.errors import InputError, shortened
from autotune.export import export_layout
from autotune.hardware import Device, Measured, Stated, device_named, device_to_json
from autotune.inputs import validated
from autotune.layout import LAYOUT_COLUMNS, Layout
from autotune.model import Model
from autotune.named_spaces import available_spaces, load_space
from autotune.options.command_line import command_line
from autotune.request import Request, request_from_json
from autotune.space import SearchSpace
from autotune.trial.trial import to_json
from tests.autotune.simulate import fake_request, new_store, run_to_the_end, without_digests
from tests.conftest import REPOSITORY, examples
from tests.trainables.recorded_runs import RECORDED_RUNS

# The fixtures may be shared by examples: none of them changes anything.
SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

COMMANDS: dict[str, click.Command] = {
    "run": autotune.commands.run.main,
    "plan": autotune.commands.plan.main,
    "try": autotune.commands.try_.main,
    "scale": autotune.commands.scale.main,
    "calibrate": autotune.commands.calibrate.main,
    "pipeline": autotune.commands.pipeline.main,
    "trace": autotune.commands.trace.main,
    "train": trainables.deepspeed_llm.__main__.main,
    "training": trainables.deepspeed_llm.training.__main__.main,
}
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


def must_not_start(*_: object, **__: object) -> None:
    raise AssertionError("something was started")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the commands run: nothing may be started, nothing may be there afterwards."""
    if ray := sys.modules.get("ray"):
        monkeypatch.setattr(ray, "init", must_not_start)
    monkeypatch.setitem(sys.modules, "ray", None)  # to import it fails
    monkeypatch.setattr(trainables.deepspeed_llm.__main__, "_run_here", must_not_start)
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    yield working
    assert list(working.iterdir()) == []


Capture = pytest.CaptureFixture[str]


def refusal(capsys: Capture, command: str, *arguments: object) -> str:
    """The one line that the command says to them; it does nothing else."""
    status = command_line(COMMANDS[command], [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "", (status, captured.out)
    check_line(captured.err)
    return captured.err


def check_line(errors: str) -> None:
    assert errors.startswith("error: ") and errors.endswith("\n"), errors
    assert len(errors.splitlines()) == 1 and errors[:-1].isprintable(), errors
    assert "Traceback" not in errors


def check_told(capsys: Capture, command: str, *arguments: object) -> int:
    """Status 0, or 2 with one clear line."""
    status = command_line(COMMANDS[command], [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert status in (0, 2)
    if status == 2:
        assert captured.out == ""
        check_line(captured.err)
    else:
        assert captured.err == ""
    return status


# Options: every one of every command, with values that it must refuse.

TINY = ("--space", "tiny")
ONE_LAYOUT = ("--model", json.dumps(MODEL), "--layout", "{}", "--steps", "2")
NEEDED: dict[str, dict[str, str]] = {
    "run": {"--space": "tiny"},
    "plan": {"--space": "tiny"},
    "try": {"--space": "tiny"},
    "scale": {"--space": "tiny", "--nodes": "1,2"},
    "calibrate": {},
    "pipeline": {},
    "trace": {"--space": "tiny", "--layout": "{}"},
    "train": dict(zip(ONE_LAYOUT[::2], ONE_LAYOUT[1::2], strict=True)),
    "training": dict(zip(ONE_LAYOUT[::2], ONE_LAYOUT[1::2], strict=True)),
}
COUNTS = ("0", "-1", "1.5", "many", "", "nan", "inf", "1e3", str(2**31), "9" * 5000)
COUNTS_OR_ZERO = tuple(value for value in COUNTS if value != "0")
AMOUNTS = ("0", "-1", "much", "", "nan", "inf", "-inf", "1e400", "1e30")
LONG_NAME = "n" * 300
SPACE_OPTIONS: dict[str, Sequence[str]] = {
    "--space": ("", "huge", "TINY", "tiny ", "none.py", "..", LONG_NAME, LONG_NAME + ".py", "é"),
    "--model": ("", "none.json", ".", "{", "[]", '{"hidden_size": 3}', LONG_NAME, "null"),
    "--nodes": COUNTS,
    "--gpus-per-node": COUNTS,
    "--gpu": ("", "abacus", "none.json", ".json", "H100", LONG_NAME + ".json"),
    "--network": ("", "dgx", "none.json", ".json", LONG_NAME + ".json"),
    "--network-gbit": AMOUNTS,
    "--precision": ("", "fp16", "BF16", "float32"),
    "--sequence-length": COUNTS,
    "--global-batch-size": COUNTS,
    "--fix": (
        "", "=", "=1", "tensor_parallel", "speed=1", "fp8=true", "tensor_parallel=",
        "tensor_parallel=0", "tensor_parallel=-1", "tensor_parallel=1.5", "tensor_parallel=x",
        "tensor_parallel=1,1", "tensor_parallel=1,,2", "tensor_parallel=true",
        "tensor_parallel=" + "9" * 5000, "data_parallel=0", "gradient_accumulation_steps=1",
        "pipeline_parallel=nan", "zero_stage=4", "zero_stage=-1", "micro_batch_size=0",
        "activation_checkpointing=some", "sequence_parallel=maybe", "attention_kernel=fast",
        "rmsnorm_kernel=", "torch_compile=2", "micro_batch_size=3", "tensor_parallel=3",
    ),
}  # fmt: skip
LAYOUTS = (
    "", "none.json", ".", "{", "[]", "{}{}", '{"tensor_parallel": NaN}',
    '{"tensor_parallel": 1, "tensor_parallel": 2}', '{"a": ' * 99_999, '{"speed": 1}',
    '{"tensor_parallel": 3}', '{"tensor_parallel": "2"}', '{"zero_stage": 9}',
    '{"data_parallel": 3}', '{"micro_batch_size": true}', '{"micro_batch_size": null}',
    '{"gradient_accumulation_steps": 3}', '{"gradient_accumulation_steps": null}',
    '{"attention_kernel": "fast"}', '{"fp8": true}', '{"pipeline_parallel": 1e400}',
    '{"pipeline_parallel": 1' + "0" * 400 + "}",
)  # fmt: skip
BAD_OPTIONS: dict[str, dict[str, Sequence[str]]] = {
    "run": {
        **SPACE_OPTIONS,
        "--out": ("", LONG_NAME),
        "--address": (),  # in test_run.py
        "--resume": ("", ".", "none", LONG_NAME),
        "--trainable": ("", "magic", "Replay"),
        "--runs": ("", "none.csv", ".", LONG_NAME),
        "--command": ("", "none.toml", ".", LONG_NAME, "/dev/null"),
        "--simulated-trainer": ("", "mine", "none.json", ".json", LONG_NAME),
        "--search": ("", "annealing", "GUIDED"),
        "--max-trials": COUNTS,
        "--gpu-hours": AMOUNTS,
        "--training-gpu-hours": AMOUNTS,
        "--wait-for-nodes": (*AMOUNTS, "1e9"),
        "--dashboard-host": ("", "localhost", "1.2.3", "1.2.3.4:80", "::g"),
        "--dashboard-port": ("", "0", "-1", "65536", "http", "80.5"),
        "--metrics-port": ("", "0", "-1", "65536", "http", "80.5"),
        "--log": ("", "tensorbord", "MLflow", "tensorboard,", ",", "wandb mlflow", LONG_NAME),
        "--seed": ("-1", "1.5", "x", "", "nan", "9" * 5000, str(2**63)),
        "--stop-factor": ("0.5", "0", "-1", "nan", "inf", "x", ""),
        "--trial-timeout": (*AMOUNTS, "1e9"),
        "--until": (*AMOUNTS, "25:00", "tomorrow", "2020-01-01T00:00"),
        "--data": ("", "none", LONG_NAME, "/dev/null"),
        "--trace-steps": (*COUNTS_OR_ZERO, "1"),  # 1: nothing is traced by what is simulated
        "--env": (
            "", "NAME", "=", "=1", "A B=1", "1A=1", "A-B=1", "Ä=1", "A;B=1", "A\nB=1", "$(A)=1",
            "RANK=1", "MASTER_ADDR=here",
        ),
    },
    "try": {
        **SPACE_OPTIONS,
        "--layout": ("", "none.json", ".", "{", "[]", '{"speed": 1}', '{"tensor_parallel": 3}',
            '{"zero_stage": [1, 2]}', '{"pipeline_parallel": 2, "zero_stage": 2}'),
        "--trainable": ("", "magic", "simulated"),
        "--command": ("", "none.toml", ".", LONG_NAME, "/dev/null"),
        "--trial-timeout": (*AMOUNTS, "1e9"),
        "--data": ("", "none", LONG_NAME, "/dev/null"),
        "--trace-steps": COUNTS_OR_ZERO,
        "--env": ("", "NAME", "=", "=1", "A B=1", "RANK=1"),
        "--address": ("local", "ray://x:1"),
        "--logs": ("", LONG_NAME, "/dev/null"),
    },
    "scale": {
        **SPACE_OPTIONS,
        "--nodes": ("", "0", "-1", "1,", ",", "1,1", "2,x", "1.5", "nan", "1 2", "9" * 5000),
        "--kind": ("", "super", "Strong"),
        "--trainer": ("", "mine", "none.json"),
        "--out": ("",),
        "--trainable": ("", "magic", "replay", "command"),
        "--max-trials": COUNTS,
        "--address": (),  # in test_run.py
        "--figure": ("", "x.gif", "x", "none/x.svg", "/proc/x.svg", LONG_NAME + ".svg"),
    },
    "plan": {
        **SPACE_OPTIONS,
        "--top": COUNTS,
        "--export": ("", "nemo", "Megatron-LM"),
        "--out": ("x",),  # without --export
        "--explain": LAYOUTS,
        "--pipeline": ("", "step.pdf", "step", "none/step.svg", ".svg", LONG_NAME + ".svg"),
        "--peak-tflops": AMOUNTS,
        "--memory-gib": AMOUNTS,
        "--memory-bandwidth": AMOUNTS,
        "--multiprocessors": COUNTS,
        "--trainer": ("", "mine", "Megatron", LONG_NAME, "none.json", "/dev/null.json"),
    },
    "calibrate": {
        "--gpu": SPACE_OPTIONS["--gpu"],
        "--out": ("", "mine.txt", "none/mine.json", ".", LONG_NAME + ".json"),
        "--trainer-out": ("", "mine.txt", "none/mine.json", ".", LONG_NAME + ".json"),
        "--trainer-name": ("", "a/b", ".mine", "megatron", LONG_NAME),
    },
    "pipeline": {
        "--out": ("", "step.pdf", "step", "none/step.svg", ".svg", LONG_NAME + ".svg"),
    },
    "trace": {
        **SPACE_OPTIONS,
        "--layout": LAYOUTS,
        "--stage": ("-1", "1", "64", "1.5", "x", "", "nan", "9" * 5000),
    },
    "train": {
        "--layout": ("", "none.json", ".", "{", "[]", '{"speed": 1}', '{"tensor_parallel": 3}',
            '{"attention_kernel": "flash_attn"}', '{"pipeline_parallel": 2, "zero_stage": 2}',
            '{"zero_stage": 1, "zero_stage": 2}'),
        "--model": ("", "none.json", ".", "{", "[]", '{"experts": 8}', '{"hidden_size": 64}'),
        "--steps": COUNTS,
        "--warmup": ("-1", "2", "1.5", "x", "", "nan", "9" * 5000),
        "--memory-gib": AMOUNTS,
        "--data": ("", "none", LONG_NAME),
        "--seed": ("-1", "1.5", "x", ""),
        "--trace-steps": COUNTS_OR_ZERO,
        "--device": ("", "tpu", "CPU"),
        "--gpu": SPACE_OPTIONS["--gpu"],
        "--trial-timeout": (*AMOUNTS, "1e9"),
    },
}  # fmt: skip
BAD_OPTIONS["training"] = {
    **{
        option: values
        for option, values in BAD_OPTIONS["train"].items()
        if option not in ("--warmup", "--trial-timeout", "--trace-steps")
    },
    "--data-dtype": ("", "float32", "UINT16"),
    "--learning-rate": AMOUNTS,
    "--min-learning-rate": ("-1", "1", "2", "x", "", "nan", "inf"),
    "--warmup-steps": ("-1", "3", "1.5", "x", "", "nan"),
    "--weight-decay": ("-1", "2", "x", "", "nan"),
    "--checkpoints": ("", "/proc/mine", "/dev/null", LONG_NAME),
    "--save-every": COUNTS,
    "--keep-checkpoints": COUNTS,
    "--resume-from": ("", "none", LONG_NAME),
    "--validation-data": ("", "none", "none.npy", LONG_NAME),
    "--validate-every": COUNTS,
    "--validation-batches": COUNTS,
    "--metrics": ("", "none/metrics.jsonl", ".", LONG_NAME),
    "--deepspeed-config": (
        "none.json", "{", "{}", '{"train_micro_batch_size_per_gpu": 1}', "[]",
    ),
}  # fmt: skip
"""By command and option."""
CASES = [
    (command, option, value)
    for command, options in BAD_OPTIONS.items()
    for option, values in options.items()
    for value in values
]


@pytest.mark.parametrize(("command", "option", "value"), CASES, ids=lambda value: value[:40])
def test_a_bad_value_of_an_option_is_one_line(
    command: str, option: str, value: str, folder: Path, capsys: Capture
) -> None:
    needed = dict(NEEDED[command])
    if option == "--resume" or (command, option) == ("plan", "--model"):
        del needed["--space"]
    elif option == "--runs":
        needed = {"--trainable": "replay"}
    elif option == "--command":
        needed["--trainable"] = "command"
    elif option == "--trainer-name":
        needed["--trainer-out"] = "mine.json"
    elif option == "--simulated-trainer" or (option, value) == ("--trace-steps", "1"):
        needed["--trainable"] = "simulated"
    elif option == "--pipeline":
        needed["--explain"] = "{}"
    needed[option] = value
    words = [word for pair in needed.items() for word in pair]
    if command == "calibrate":
        runs = folder.parent / "runs.csv"
        runs.write_text(RECORDED_RUNS)
        words.append(str(runs))
    if command == "pipeline":
        words.append(str(run_of_two_trials(folder.parent)))
    line = refusal(capsys, command, *words)
    field = option.removeprefix("--").replace("-", "_")
    # A restriction may be legal, and leave nothing.
    assert any(named in line for named in (option, field, "no layout is left"))
    if option in ("--fix", "--env"):
        assert any(part.strip() in line for part in re.split("[=\n]", value))
    elif not value.startswith(("{", "[")) and option != "--deepspeed-config":
        assert shortened(value) in line or str(float(value)) in line


def test_every_option_of_every_command_has_bad_values() -> None:
    for name, command in COMMANDS.items():
        options = {
            p.opts[0] for p in command.params if isinstance(p, click.Option) and not p.is_flag
        }
        assert options == BAD_OPTIONS[name].keys(), name
    assert len(CASES) > 100


LAYOUT = json.dumps({"tensor_parallel": 2})
STATED = ("--peak-tflops", "1", "--memory-gib", "1", "--memory-bandwidth", "1")
STATED = (*STATED, "--multiprocessors", "1")
CONTRADICTIONS: list[tuple[str, tuple[object, ...], str]] = [
    ("run", (), "--space, --model or --resume must be given"),
    ("run", ("--resume", "x", "--model", "y"), "--model cannot be changed by --resume"),
    ("run", ("--resume", "x", "--precision", "fp32"), "--precision cannot be changed by --resume"),
    ("run", ("--resume", "x", "--out", "y"), "--out cannot be changed by --resume"),
    ("run", ("--resume", "x", "--space", "tiny"), "--space cannot be changed by --resume"),
    ("run", ("--resume", "x", "--seed", "0"), "--seed cannot be changed by --resume"),
    (
        "run",
        ("--resume", "x", "--whole-trials"),
        "--reduced-trials/--whole-trials cannot be changed",
    ),
    ("run", (*TINY, "--runs", "x.csv"), "got --trainable auto and --runs x.csv"),
    ("run", ("--trainable", "replay", *TINY), "got --trainable replay and --runs None"),
    (
        "run",
        ("--trainable", "replay", "--runs", "x.csv", "--nodes", "4"),
        "uses all recorded layouts unchanged: --nodes cannot be given",
    ),
    (
        "run",
        (*TINY, "--data", "x", "--synthetic-data"),
        "--data must not be given",
    ),
    ("run", (*TINY, "--env", "A=1", "--env", "A=2"), "--env: A is given twice"),
    ("run", (*TINY, "--fix", "zero_stage=1", "--fix", "zero_stage=2"), "zero_stage is given twice"),
    ("run", (*TINY, "--model", json.dumps({**MODEL, "vocab_size": 255})), "vocab_size must be at"),
    ("run", (*TINY, "--out"), "Option '--out' requires an argument"),
    ("run", (*TINY, "more"), "unexpected extra argument (more)"),
    ("run", (*TINY, "--spaces", "x"), "No such option '--spaces'"),
    ("run", (*TINY, "--json=yes"), "Option '--json' does not take a value"),
    ("run", (*TINY, "--out", "a\udcffb"), r"arguments must be UTF-8 text, got 'a\udcffb'"),
    ("run", (*TINY, "\x1b[31m\nred"), r"unexpected extra argument (\x1b[31m red)"),
    ("plan", (), "--space or --model must be given"),
    (
        "plan",
        (*TINY, "--gpu", "a/b", *STATED),
        "name must be 1 to 100 printable characters",
    ),
    ("plan", (*TINY, "--out", "x"), "--out must be given with --export, got none"),
    (
        "plan",
        (*TINY, "--explain", LAYOUT, "--model", "{}"),
        "--model: num_hidden_layers, hidden_size, intermediate_size",
    ),
    ("calibrate", (), "Missing argument 'RUNS...'"),
    ("calibrate", ("x.csv", "--seed", "1"), "No such option '--seed'"),
    ("calibrate", ("x.csv", "--out", "a.json", "--trainer-out", "b.json"), "cannot be given with"),
    ("calibrate", ("x.csv", "--trainer-name", "mine"), "must be given with --trainer-out"),
    ("plan", (*TINY, "--pipeline", "x.svg"), "--pipeline must be given with --explain, got none"),
    ("plan", (*TINY, "--traced"), "--traced must be given with --explain, got none"),
    (
        "plan",
        (*TINY, "--explain", LAYOUT, "--trainer", "nemo", "--traced"),
        "--traced must be given with trainer deepspeed_llm, got nemo",
    ),
    ("trace", (*TINY,), "Missing option '--layout'"),
    ("pipeline", ("--out", "x.svg"), "Missing argument 'DIR'"),
    ("pipeline", ("none", "--out", "x.svg"), "no run in 'none'"),
    ("train", ("--layout", "{}", "--steps", "1"), "Missing option '--model'"),
    ("train", (*ONE_LAYOUT, "--gpu", "h100", "--device", "cpu"), "exclude each other"),
    ("train", (*ONE_LAYOUT, "--data", "x", "--synthetic-data"), "--data must not be given"),
    ("train", (*ONE_LAYOUT, "--gpu", "h100"), "layout: "),
    ("training", ONE_LAYOUT, "must be started by torchrun, as an exported launch.sh does"),
    ("training", (*ONE_LAYOUT, "--save-every", "2"), "--save-every must be given with --checkp"),
    ("training", (*ONE_LAYOUT, "--keep-checkpoints", "2"), "must be given with --checkpoints"),
    ("training", (*ONE_LAYOUT, "--validate-every", "2"), "must be given with --validation-data"),
    ("training", (*ONE_LAYOUT, "--data-dtype", "uint8"), "--data-dtype is for .bin files only"),
    ("training", (*ONE_LAYOUT, "--min-learning-rate", "0.1"), "at most --learning-rate 0.0003"),
    (
        "training",
        (*ONE_LAYOUT, "--deepspeed-config", '{"train_micro_batch_size_per_gpu": 4}'),
        "--deepspeed-config must have the layout's train_micro_batch_size_per_gpu 1, got 4",
    ),
    (
        "training",
        (*ONE_LAYOUT, "--validation-data", __file__, "--validation-batches", "999999"),
        "--validation-data must have 127999873 tokens for 999999 batches",
    ),
]


@pytest.mark.parametrize(("command", "arguments", "sentence"), CONTRADICTIONS)
def test_options_that_do_not_go_together_are_one_line(
    command: str, arguments: tuple[object, ...], sentence: str, capsys: Capture
) -> None:
    assert sentence in refusal(capsys, command, *arguments)


def test_a_process_that_refuses_has_not_imported_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from autotune.__main__ import main; status = main(); "
        "assert not {'ray', 'torch', 'deepspeed'} & sys.modules.keys(); sys.exit(status)"
    )
    out = tmp_path / "run"
    for arguments in (("run", *TINY, "--max-trials", "0", "--out", out), ("plan", "--nodes", "0")):
        process = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=REPOSITORY,
        )
        assert (process.returncode, process.stdout) == (2, "")
        check_line(process.stderr)
    assert not out.exists()


# Fields: every one of every dataclass that untrusted values are read into.

SPACE = load_space("tiny")
H100 = device_named("h100")
GOOD: dict[type, Mapping[str, Any]] = {
    kind: {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for kind, value in {
        SearchSpace: SPACE,
        Model: SPACE.model,
        Cluster: SPACE.cluster,
        Layout: SPACE.layouts()[0],
        Device: H100,
        Measured: Measured(
            value=1.0,
            kind="fitted",
            source="here",
            unfitted=Stated(value=2, kind="assumed", source="there"),
        ),
        Stated: Stated(value=1.0, kind="stated", source="here"),
        Request: fake_request(),
    }.items()
}
nothing = st.none()
texts = st.text(max_size=20)
floats = st.floats()
lists = st.lists(st.integers(), max_size=3)
objects = st.builds(object) | st.dictionaries(texts, st.integers(), max_size=2)
large = st.integers(min_value=2**31)
no_count = st.one_of(
    st.integers(max_value=0), large, floats, texts, st.booleans(), nothing, lists, objects
)
no_amount = st.one_of(
    st.floats(max_value=0), st.floats(min_value=2e9), st.just(float("nan")), st.just(1e-300),
    texts, st.booleans(), lists, objects, st.integers(min_value=2 * 10**9),
)  # fmt: skip
no_text = st.one_of(st.integers(), floats, st.booleans(), nothing, lists, objects)
no_flag = st.one_of(st.integers(), floats, texts, nothing, lists, objects)
no_object = st.one_of(st.integers(), floats, texts, st.booleans(), nothing, lists)
no_name = st.one_of(
    no_text, st.sampled_from(["", ".", "..", "a/b", "/etc", "a\nb", "a\0", "\x1b[31m", "n" * 101])
)


def no_choice(*among: str) -> st.SearchStrategy[Any]:
    return st.one_of(no_text, texts.filter(lambda text: text not in among))


def none_of(bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is no tuple of good values."""
    wrong = st.tuples(bad.filter(lambda value: value is not None)) | st.tuples(nothing)
    return st.one_of(wrong, st.just(()), st.integers(), floats, texts, st.booleans())


def or_null(bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The same where null is good."""
    return bad.filter(lambda value: value is not None)


stages = st.one_of(
    st.integers(max_value=-1), st.integers(min_value=4), floats, texts, st.booleans(), nothing
)
no_kernel = no_choice(
    "math", "sdpa_flash", "sdpa_cudnn", "flash_attn", "megatron", "flash1", "flash2"
)
no_checkpointing = no_choice("none", "selective", "full")
no_seed = st.one_of(st.integers(max_value=-1), st.integers(min_value=2**63), floats, texts, nothing)
no_constant = st.one_of(
    no_object, st.sampled_from([{"x": {"value": -1, "source": ""}}, {"x": {"value": 1}}, {"x": 1}])
)
BAD_FIELDS: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    SearchSpace: {
        "name": no_name,
        "model": no_object,
        "cluster": no_object,
        **dict.fromkeys(
            ("tensor_parallel", "pipeline_parallel", "micro_batch_size"),
            none_of(no_count) | nothing,
        ),
        "data_parallel": none_of(no_count),
        "zero_stage": none_of(stages) | nothing,
        "activation_checkpointing": none_of(no_checkpointing),
        "sequence_parallel": none_of(no_flag),
        "attention_kernel": none_of(no_kernel),
        "rmsnorm_kernel": none_of(no_choice("plain", "fused")),
        "torch_compile": none_of(no_flag),
        "max_trials": no_count,
        "warmup_steps": no_count.filter(lambda value: value != 0),
        "measured_steps": no_count,
        "deepspeed_engine": no_flag,
    },
    Model: {
        **dict.fromkeys(GOOD[Model], no_count),
        "num_hidden_layers": no_count | st.integers(min_value=100_001),
        "rms_norm_eps": st.one_of(st.floats(max_value=0), st.floats(min_value=1), texts, nothing),
        "rope_theta": st.one_of(
            st.floats(max_value=0), st.just(float("inf")), st.just(float("nan")), texts, nothing
        ),
        "precision": or_null(no_choice("fp32", "bf16")),
        **dict.fromkeys(
            (name for name, value in GOOD[Model].items() if type(value) is bool), no_flag
        ),
        **dict.fromkeys(
            ("head_dim", "max_position_embeddings", "sliding_window"), or_null(no_count)
        ),
        **dict.fromkeys(
            ("attention_scale", "attention_softcap", "logit_softcap", "embedding_scale"),
            or_null(no_amount),
        ),
        **dict.fromkeys(
            ("rope_scaling", "latent_attention", "experts"),
            no_object.filter(lambda value: value is not None),
        ),
        "rotary_fraction": st.one_of(st.floats(max_value=0), st.floats(min_value=1.01), texts),
        "local_rope_theta": st.one_of(st.floats(max_value=0), st.just(float("nan")), texts),
        "global_every": st.one_of(st.integers(max_value=-1), texts, nothing),
        "positions": no_choice("rotary", "learned"),
        "activation": no_choice("silu", "gelu", "gelu_tanh", "relu_squared"),
        "norm": no_choice("rmsnorm", "layernorm"),
        "norm_placement": no_choice("before", "after", "around"),
        "qk_norm": no_choice("none", "heads", "projection"),
        "architecture": st.integers() | nothing,
        "notes": st.integers() | texts | nothing,
    },
    Cluster: {
        "nodes": no_count,
        "gpus_per_node": no_count,
        "device": no_object,
        "memory_gib": no_amount,
        "network": no_object.filter(lambda value: value is not None),
    },
    Layout: {
        **dict.fromkeys(
            (name for name, value in GOOD[Layout].items() if type(value) is int),
            no_count,
        ),
        "zero_stage": stages,
        "activation_checkpointing": no_checkpointing,
        "sequence_parallel": no_flag,
        "attention_kernel": no_kernel,
        "rmsnorm_kernel": no_choice("plain", "fused"),
        "torch_compile": no_flag,
    },
    Device: {
        "name": no_name,
        "kind": no_choice("gpu", "cpu"),
        **dict.fromkeys(
            ("memory_gib", "peak_bf16_tflops", "peak_fp32_tflops", "memory_gb_per_second"),
            no_amount,
        ),
        "multiprocessors": or_null(no_count),
        "attention_kernels": st.tuples(no_kernel) | st.integers() | texts | nothing,
        "ray_accelerator_types": st.tuples(no_text) | st.integers() | texts | nothing,
        "source": no_text,
        "network": no_name.filter(lambda value: value is not None),
        "constants": no_constant,
        "trainers": no_constant | st.builds(lambda bad: {"deepspeed_llm": bad}, no_constant),
    },
    Stated: {
        "value": or_null(no_amount.filter(lambda value: value not in (0, 1e-300))) | nothing,
        "kind": no_choice("stated", "fitted", "assumed"),
        "source": no_text,
    },
    Measured: {
        "kind": no_choice("stated", "fitted", "assumed"),
        "value": no_amount.filter(lambda value: value not in (0, 1e-300)) | nothing,
        "source": no_text,
        "unfitted": or_null(no_object),
    },
    Request: {
        "space": no_object,
        "trainable": no_text,
        "search": no_choice("guided", "hyperopt", "random", "grid", "rules"),
        "seed": no_seed,
        "max_trials": no_count,
        "gpu_hours": no_amount,
        "training_gpu_hours": no_amount,
        "reduced_trials": no_flag,
        "prune": no_flag,
        "stop_factor": no_amount | st.floats(max_value=0.999),
        "trial_timeout_seconds": no_amount.filter(lambda value: value != 1e-300) | nothing,
        "data": or_null(no_text),
        "synthetic_data": no_flag,
        "trace_steps": no_count.filter(lambda value: value != 0) | st.just(1),
        "env": st.one_of(
            no_object, st.sampled_from([{"A": 1}, {"A B": "1"}, {"": "1"}, {"RANK": "1"}])
        ),
        "runs": or_null(no_text) | texts,
        "command": or_null(no_object) | st.just({"argv": ["a"]}),
        "simulated_trainer": or_null(no_object) | st.just({"name": "mine"}),
        "layouts": st.one_of(
            st.integers(), texts, st.just(()), st.tuples(no_object.filter(lambda v: v != []))
        ),
    },
}
"""By kind and field: values that are not for it."""


def test_every_field_has_bad_values() -> None:
    for kind, fields in BAD_FIELDS.items():
        assert fields.keys() == GOOD[kind].keys(), kind
        assert validated(kind, GOOD[kind], what="good")


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind, fields in BAD_FIELDS.items() for field in fields],
    ids=lambda value: getattr(value, "__name__", value),
)
@examples(15, suppress_health_check=SHARED)
@given(data=st.data())
def test_a_bad_value_of_a_field_is_one_sentence(
    kind: type, field: str, data: st.DataObject
) -> None:
    value = data.draw(BAD_FIELDS[kind][field])
    with pytest.raises(InputError) as error:
        validated(kind, {**GOOD[kind], field: value}, what="given")
    sentence = str(error.value)
    assert sentence.startswith("given: ") and field in sentence, sentence
    assert len(sentence) < 1_000
    told = (" must ", " is missing", " are missing", " cannot be given", "exclude each other")
    assert any(rule in sentence for rule in told), sentence


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_unknown_and_missing_fields_are_named(kind: type) -> None:
    with pytest.raises(InputError, match=r"^given: unknown key speed$"):
        validated(kind, {**GOOD[kind], "speed": 1}, what="given")
    for field in dataclasses.fields(kind):
        if field.default is field.default_factory is dataclasses.MISSING:
            without = {name: value for name, value in GOOD[kind].items() if name != field.name}
            with pytest.raises(InputError, match=rf"^given: {field.name} is missing$"):
                validated(kind, without, what="given")


# Files: what is broken, of another shape, or of other people's making.

BAD_SPACES = [
    ("", "must define a function space(), got None"),
    ("space = 1", "must define a function space(), got 1"),
    ("def space(: pass", "SyntaxError: "),
    ("\0", "SyntaxError: "),
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("raise ValueError('two\\nlines')", "ValueError: two lines"),
    ("raise SystemExit(7)", "SystemExit: 7"),
    ("def space(): raise SystemExit", "SystemExit"),
    ("def space(): return 1 / 0", "ZeroDivisionError: division by zero"),
    ("def space(): return space()", "RecursionError: maximum recursion depth exceeded"),
    ("def space(name): pass", "TypeError: space() missing 1 required positional argument"),
    ("def space(): return 'tiny'", "space() must return a SearchSpace, got str"),
    ("def space(): raise Exception", "Exception"),
    ("raise GeneratorExit", "GeneratorExit"),
    ("class Odd(BaseException): pass\nraise Odd('so')", "Odd: so"),
    ("class Odd(Exception):\n def __str__(self): return 3\nraise Odd", "Odd"),
    ("class Odd(Exception):\n def __str__(self): raise SystemExit(0)\nraise Odd", "Odd"),
    ("class Odd:\n def __repr__(self): raise SystemError\nspace = Odd()", "got an object of type"),
    ("async def space(): pass", "space() must return a SearchSpace, got coroutine"),
    ("async def space(): yield", "space() must return a SearchSpace, got async_generator"),
    ("def space(): yield", "space() must return a SearchSpace, got generator"),
    (
        "class Odd:\n @property\n def __class__(self): raise ValueError\nspace = Odd",
        "space() must return a SearchSpace, got Odd",
    ),
    (
        "from search_spaces.tiny import SearchSpace\nclass Mine(SearchSpace): pass\n"
        "def space(): return object.__new__(Mine)",
        "space() must return a SearchSpace, got Mine",
    ),
    (
        "from search_spaces.tiny import SearchSpace\n"
        "def space(): return object.__new__(SearchSpace)",
        "AttributeError: 'SearchSpace' object has no attribute",
    ),
    (
        "from search_spaces import tiny\nmine = tiny.space()\n"
        "object.__setattr__(mine, 'max_trials', -5)\ndef space(): return mine",
        "SearchSpace: max_trials must be greater than or equal to 1, got -5",
    ),
    (
        "from search_spaces import tiny\nmine = tiny.space()\n"
        "object.__setattr__(mine.model, 'hidden_size', 'x')\ndef space(): return mine",
        "SearchSpace: model.hidden_size must be a valid integer, got 'x'",
    ),
    ("import os\nos.close(1)", "must leave the standard streams open"),
    ("import os\nos.closerange(0, 3)", "must leave the standard streams open"),
    (
        "from search_spaces.tiny import *\ndef space(): return SearchSpace(name='x')",
        "SearchSpace: model and cluster are missing",
    ),
    (
        "import dataclasses\nfrom search_spaces import tiny\n"
        "def space(): return dataclasses.replace(tiny.space(), max_trials=10**5000)",
        "SearchSpace: max_trials must be less than or equal to",
    ),
    (
        "import dataclasses\nfrom search_spaces import tiny\n"
        "def space(): return dataclasses.replace(tiny.space(), name='../../x')",
        "name must be 1 to 100 printable characters without '/'",
    ),
]


@pytest.mark.parametrize(("code", "sentence"), BAD_SPACES)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_bad_space_file_is_one_line(
    command: str, code: str, sentence: str, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "mein raum.py"
    file.write_text(code)
    line = refusal(capsys, command, "--space", file)
    assert str(file) in line and sentence in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mein raum.py", "working"]


HARMLESS = [
    "print('a word on the way')",
    "import sys; sys.stdout.close(); sys.stderr.close()",
    "import sys; sys.stdout = sys.stderr = None",
]


@pytest.mark.parametrize("code", HARMLESS)
def test_what_a_space_does_to_its_output_does_not_reach_ours(
    code: str, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "space.py"
    file.write_text(f"{code}\nfrom search_spaces.tiny import space\n")
    assert command_line(COMMANDS["plan"], ["--space", str(file), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["layouts"]
    assert shown.err == ("a word on the way\n" if "print" in code else "")


def test_ctrl_c_while_a_space_is_read_is_an_interruption(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "space.py"
    file.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass")
    assert command_line(COMMANDS["plan"], ["--space", str(file)]) == 130
    assert capsys.readouterr().err == "\nerror: interrupted\n"


def test_every_space_that_ships_is_what_its_file_makes() -> None:
    for name in available_spaces():
        assert load_space(str(REPOSITORY / "search_spaces" / f"{name}.py")) == load_space(name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
extremes = st.sampled_from([0, 1, 1e-9, 1e9, 2**31 - 1, -1, 1e-300, 1e300, 2**31, "", [], {}])


def places_of(value: object, before: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a JSON value."""
    yield before
    inner: Any = (
        value
        if isinstance(value, dict)
        else dict(enumerate(value))
        if isinstance(value, list)
        else {}
    )
    for key, found in inner.items():
        yield from places_of(found, (*before, key))


MISSING = ...


def changed(value: Any, place: Sequence[Any], new: object) -> Any:
    """The JSON value with something else, or nothing, at that place."""
    if not place:
        return new
    first, *rest = place
    copied = copy.copy(value)
    if new is MISSING and not rest:
        del copied[first]
    else:
        copied[first] = changed(value[first], rest, new) if rest else new
    return copied


A100_JSON = json.loads(device_to_json(device_named("a100-80gb")))
UNLIKELY = {"value": 0, "source": "nowhere"}
BAD_DEVICES: list[tuple[tuple[str, ...], object, str]] = [
    ((), [], "must be a JSON object, got list"),
    (("speed",), 1, "unknown key speed"),
    (("name",), MISSING, "name is missing"),
    (("kind",), "tpu", "kind must be 'gpu' or 'cpu', got 'tpu'"),
    (("memory_gib",), "80", "memory_gib must be a valid number, got '80'"),
    (("memory_gib",), float("nan"), "numbers must be finite, got NaN"),
    (("attention_kernels",), ["flash_atn"], "attention_kernels must be 'math', 'sdpa_flash'"),
    (("constants", "speed"), UNLIKELY, "constant must be one of those of constants.json, got 'sp"),
    (("constants", "link_efficiency"), UNLIKELY, "link_efficiency must be from 1e-09 to"),
    (("constants", "overlap"), {**UNLIKELY, "value": 2}, "overlap must be from 0 to 1, got 2"),
    (("trainers", "mine"), {}, "trainer must be one of deepspeed, deepspeed_fp32_gradients, "),
]


@pytest.mark.parametrize(("place", "new", "sentence"), BAD_DEVICES, ids=[d[2] for d in BAD_DEVICES])
@pytest.mark.parametrize("command", ["run", "plan", "calibrate"])
def test_a_bad_hardware_file_is_one_line(
    command: str,
    place: Sequence[str],
    new: object,
    sentence: str,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    file = tmp_path / "device.json"
    file.write_text(json.dumps(changed(A100_JSON, place, new)))
    runs = tmp_path / "runs.csv"
    runs.write_text(RECORDED_RUNS)
    given = [runs] if command == "calibrate" else ["--space", "llm13b"]
    assert sentence in refusal(capsys, command, *given, "--gpu", file)


@pytest.mark.parametrize("command", ["run", "plan"])
@examples(100, suppress_health_check=SHARED)
@given(place=st.sampled_from(list(places_of(A100_JSON))), new=json_values | extremes)
def test_any_hardware_file_is_taken_or_refused_in_one_line(
    command: str, place: Sequence[Any], new: object, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "device.json"
    file.write_text(json.dumps(changed(A100_JSON, place, new)))
    arguments = ("--space", "llm65b", "--fix", "tensor_parallel=8", "--gpu", file)
    check_told(capsys, command, *arguments, *(["--dry-run"] * (command == "run")))


@pytest.mark.parametrize("command", ["run", "plan"])
@examples(100, suppress_health_check=SHARED)
@given(
    key=st.sampled_from([*MODEL, "precision", "rope_theta", "rms_norm_eps", "head_dim", "dtype"])
    | st.text(max_size=5),
    new=json_values | extremes,
)
def test_any_model_is_taken_or_refused_in_one_line(
    command: str, key: str, new: object, capsys: Capture
) -> None:
    model = json.dumps({**MODEL, key: new})
    check_told(capsys, command, *TINY, "--model", model, *(["--dry-run"] * (command == "run")))


@examples(100, suppress_health_check=SHARED)
@given(
    layout=st.dictionaries(st.sampled_from(LAYOUT_COLUMNS), json_values | extremes, max_size=3)
    | st.dictionaries(
        st.sampled_from(["tensor_parallel", "pipeline_parallel", "micro_batch_size"]),
        st.sampled_from([1, 2, 4, 8]),
    )
)
def test_any_layout_is_explained_or_refused_in_one_line(
    layout: dict[str, Any], capsys: Capture
) -> None:
    check_told(capsys, "plan", *TINY, "--explain", json.dumps(layout))


numbers = st.one_of(st.integers(), st.integers(-2, 2**31), st.floats()).map(str)
# What an operating system can pass on; no path that leads out of the folder.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=12)
pairs = st.builds("{}={}".format, st.sampled_from(LAYOUT_COLUMNS) | words, words | numbers)


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, option) for command in ("run", "plan") for option in BAD_OPTIONS[command]],
)
@examples(15, suppress_health_check=SHARED)
@given(value=st.one_of(words, numbers, pairs).filter(lambda value: value not in (".", "..")))
def test_any_text_for_an_option_is_taken_or_refused_in_one_line(
    command: str, option: str, value: str, capsys: Capture
) -> None:
    needed = {**NEEDED[command], option: value}
    if option in ("--resume", "--runs"):
        del needed["--space"]
    arguments = [f"{name}={value}" for name, value in needed.items()]
    check_told(capsys, command, *arguments, *(["--dry-run"] * (command == "run")))


# Runs: their request, and the rows of their trials.


MODEL_OF_RUN = ("request", "space", "model")
DEVICE_OF_RUN = ("request", "space", "cluster", "device")
BAD_RUNS: list[tuple[tuple[str, ...], object, str]] = [
    ((), [], "cannot read"),
    (("request",), MISSING, "cannot read"),
    (("schema_version",), MISSING, "cannot read"),
    (("schema_version",), 3, "schema_version must be 1 or 2, got 3"),
    (("schema_version",), "1", "schema_version must be 1 or 2, got "),
    (("nodes",), {}, "nodes must be a list of objects, got {}"),
    (("nodes",), [1], "nodes must be a list of objects, got [1]"),
    (("request",), [], "request must be a JSON object, got []"),
    (("request",), {}, "request: space, trainable, search and max_trials are missing"),
    (("request", "speed"), 1, "request: unknown key speed"),
    (("request", "max_trials"), MISSING, "request: max_trials is missing"),
    (("request", "max_trials"), "8", "request: max_trials must be a valid integer, got '8'"),
    (("request", "search"), "magic", "search must be one of guided, "),
    (("request", "trainable"), "replay", "runs must be given to replay recorded runs"),
    (("request", "env"), {"A; rm -rf ~": "1"}, "got 'A; rm -rf ~'"),
    (("request", "env"), {"LD_PRELOAD": "/x.so"}, "LD_PRELOAD makes programs load other code"),
    (("request", "env"), {"PYTHONPATH": "/x"}, "PYTHONPATH makes programs load other code"),
    (
        (*MODEL_OF_RUN, "hidden_size"),
        0,
        "request: space.model.hidden_size must be greater than or equal to 1, got 0",
    ),
    ((*MODEL_OF_RUN, "num_attention_heads"), 7, "must divide hidden_size, got 7 and 256"),
    ((*DEVICE_OF_RUN, "name"), "a\nrm -rf ~", "name must be 1 to 100 printable characters"),
    (
        (*DEVICE_OF_RUN, "constants", "x"),
        {},
        "device.constants.x.value, ",
    ),
    (("request", "space", "tensor_parallel"), [], "tensor_parallel must have at least one value"),
]


@pytest.mark.parametrize(("place", "new", "sentence"), BAD_RUNS, ids=[run[2] for run in BAD_RUNS])
@pytest.mark.parametrize("command", ["run", "calibrate"])
def test_a_damaged_run_is_one_line(
    command: str,
    place: Sequence[str],
    new: object,
    sentence: str,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    directory = new_store(tmp_path / "run").directory
    without_digests(directory)  # with them, every change is refused before it is looked at
    file = directory / "run.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), place, new)))
    before = contents(directory)
    option = ["--resume"] if command == "run" else []
    assert sentence in refusal(capsys, command, *option, directory)
    assert contents(directory) == before


def contents(directory: Path) -> dict[Path, bytes]:
    """Every file below the directory."""
    return {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}


BAD_ROWS: list[tuple[str, object]] = [
    ("trial_id", MISSING),
    ("trial_id", "first"),
    ("outcome", "fine"),
    ("outcome", None),
    ("tensor_parallel", MISSING),
    ("tensor_parallel", 0),
    ("attention_kernel", "fast"),
    ("activation_checkpointing", None),
]


@pytest.mark.parametrize("command", ["run", "calibrate"])
@pytest.mark.parametrize(("column", "new"), BAD_ROWS, ids=str)
def test_a_damaged_row_of_a_trial_is_one_line(
    command: str, column: str, new: object, tmp_path: Path, capsys: Capture
) -> None:
    directory = run_of_two_trials(tmp_path)
    without_digests(directory)
    file = directory / "trials" / "0001.parquet"
    (row,) = pq.read_table(file).to_pylist()
    pq.write_table(pa.Table.from_pylist([changed(row, (column,), new)]), file)
    option = ["--resume"] if command == "run" else []
    assert repr(str(file)) in refusal(capsys, command, *option, directory)


@pytest.mark.parametrize(
    ("column", "new"),
    [
        *(("step_seconds", value) for value in (0.0, 1e-300, 1e300, -1.0, math.inf, math.nan)),
        *(("peak_memory_gib", value) for value in (1e300, -1.0, math.inf, math.nan)),
        ("micro_batch_size", 3),
        ("pipeline_parallel", 1024),
        ("tensor_parallel", 2**31 - 1),
        ("gradient_accumulation_steps", 77),
    ],
)
def test_a_figure_that_cannot_be_true_is_not_fitted_to(
    column: str, new: object, tmp_path: Path, capsys: Capture
) -> None:
    directory = run_of_two_trials(tmp_path)
    without_digests(directory)
    for file in (directory / "trials").iterdir():
        (row,) = pq.read_table(file).to_pylist()
        schema = pq.read_schema(file)
        pq.write_table(pa.Table.from_pylist([changed(row, (column,), new)], schema), file)
    line = refusal(capsys, "calibrate", directory)
    assert f"{directory / 'trials'}/000" in line and " cannot be read: " in line


@pytest.mark.parametrize("name", ["trials/0001.parquet", "pruned.parquet"])
@examples(10, suppress_health_check=SHARED)
@given(content=st.binary(max_size=99) | st.sampled_from([b"PAR1" * 3, b"PAR1"]))
def test_a_damaged_file_of_a_run_is_one_line(
    name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory, capsys: Capture
) -> None:
    directory = run_of_two_trials(tmp_path_factory.mktemp("run"))
    (directory / name).write_bytes(content)
    line = refusal(capsys, "run", "--resume", directory)
    assert repr(str(directory / name)) in line and " cannot be read" in line


def test_a_stored_environment_is_shown_and_asked_for_again(tmp_path: Path, capsys: Capture) -> None:
    """Whoever made the directory could make the ranks run any code by it."""
    directory = new_store(tmp_path / "run", env={"NCCL_NET_PLUGIN": "/x", "A": "1"}).directory
    line = refusal(capsys, "run", "--resume", directory)
    assert "NCCL_NET_PLUGIN='/x', A='1'" in line and "--env" in line and "--trust-run" in line
    same = ["--env", "A=1", "--env", "NCCL_NET_PLUGIN=/x"]
    for other in ([*same[:2]], [*same[:3], "NCCL_NET_PLUGIN=/y"], [*same, "--env", "B=2"]):
        line = refusal(capsys, "run", "--resume", directory, *other)
        assert "--env must be that of the run (NCCL_NET_PLUGIN='/x', A='1')" in line
    for trusted in (same, ["--trust-run"]):
        assert check_told(capsys, "run", "--resume", directory, "--dry-run", *trusted) == 0
    none = new_store(tmp_path / "none").directory
    assert "(none)" in refusal(capsys, "run", "--resume", none, "--env", "A=1")


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_AUDIT", "PYTHONPATH", "PYTHONSTARTUP", "ENV"])
def test_variables_that_load_code_are_refused_by_name(name: str, capsys: Capture) -> None:
    line = refusal(capsys, "run", *TINY, "--env", f"{name}=x")
    assert f"{name} makes programs load other code and cannot be given" in line


def run_of_two_trials(folder: Path) -> Path:
    """The directory of a run that a search left after two trials."""
    store = new_store(folder / "run", trainable="deepspeed")
    run_to_the_end(store, trials=2)
    return store.directory


REQUEST_JSON = to_json(fake_request(env={"A": "1"}))


@examples(100, suppress_health_check=SHARED)
@given(place=st.sampled_from(list(places_of(REQUEST_JSON))), new=json_values | extremes)
def test_any_stored_request_is_taken_or_refused_in_one_sentence(
    place: Sequence[Any], new: object
) -> None:
    try:
        request_from_json(changed(REQUEST_JSON, place, new))
    except InputError as error:
        assert str(error).startswith("request") and len(str(error)) < 1_000


# Recorded runs.

COLUMNS = RECORDED_RUNS.splitlines()[0].split(",")


@examples(100, suppress_health_check=SHARED)
@given(
    column=st.sampled_from(COLUMNS),
    value=words | numbers | st.sampled_from(["../../x", "a/b", "True", "ok", "oom", "8"]),
)
def test_any_recorded_cell_is_taken_or_refused_in_one_line(
    column: str, value: str, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "läufe 1.csv"
    header, first, *rest = csv.reader(RECORDED_RUNS.splitlines())
    first[COLUMNS.index(column)] = value
    with file.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([header, first, *rest])
    check_told(capsys, "run", "--trainable", "replay", "--runs", file, "--dry-run")


@pytest.mark.parametrize("command", ["run", "calibrate"])
@pytest.mark.parametrize("name", ["runs.csv", "llama_13B_bfloat16_64_GPUs.xlsx"])
@examples(20, suppress_health_check=SHARED)
@given(content=st.binary(max_size=99) | st.sampled_from([b"PK\x03\x04", b"\xff", b"sweep\n\0"]))
def test_no_recorded_runs_are_in_any_bytes(
    command: str, name: str, content: bytes, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    given = ("--trainable", "replay", "--runs") if command == "run" else ()
    assert re.search("(--runs|RUNS):? ", refusal(capsys, command, *given, file))


def test_a_fit_that_could_not_be_written_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    runs = tmp_path / "runs.csv"
    runs.write_text(RECORDED_RUNS)
    os.mkfifo(tmp_path / "fifo.json")
    monkeypatch.setattr(autotune.commands.calibrate, "fit", must_not_start)
    for out, sentence in (
        ("/proc/mine.json", "--out must be in a writable directory, got '/proc/mine.json' ("),
        ("/dev/null/mine.json", "--out must be in a directory that exists, got "),
        (tmp_path / "fifo.json", "--out must be a file, got a FIFO "),
    ):
        assert sentence in refusal(capsys, "calibrate", runs, "--out", out)


# What looks bad and is not.


def test_paths_may_have_spaces_quotes_and_any_letters(odd: Path, capsys: Capture) -> None:
    space = odd / "räume [b].py"
    space.write_text(
        "import dataclasses\nfrom search_spaces import tiny\n"
        "def space(): return dataclasses.replace(tiny.space(), name='ein [b] raum')\n"
    )
    model = odd / "modèle 1.json"
    model.write_text(json.dumps(MODEL), encoding="utf-8")
    gpu = odd / "gpu ü.json"
    device = dataclasses.replace(device_named("cpu"), name="mein [b] gerät")
    gpu.write_text(device_to_json(device), encoding="utf-8")
    text = odd / "text ü"
    text.write_text("text")
    runs = odd / "läufe 1.csv"
    runs.write_text(RECORDED_RUNS.replace("small", "klein [b]"), encoding="utf-8")
    where = ("--space", space, "--model", model, "--gpu", gpu)
    cases = [
        ("plan", *where),
        ("plan", *where, "--explain", "{}"),
        ("run", *where, "--data", text, "--out", odd / "läuft", "--dry-run"),
        ("run", *where, "--data", odd, "--env", "A= $(b) 'c' ", "--dry-run"),
        ("run", "--trainable", "replay", "--runs", runs, "--dry-run"),
        ("calibrate", runs, "--out", odd / "gefittet.json"),
    ]
    for command, *arguments in cases:
        words = [str(argument) for argument in arguments]
        assert command_line(COMMANDS[command], words) == 0, capsys.readouterr().err
        shown = capsys.readouterr()
        assert shown.err == ""
        if command != "calibrate":
            assert "[b]" in shown.out, "names are shown as they are"
    assert device_named(str(odd / "gefittet.json")).name == "a100-80gb"
    assert not (odd / "läuft").exists() and not (odd / "__pycache__").exists()


# What is given is never run: neither by a shell nor by reading it.


def test_a_launch_script_passes_on_what_it_was_given(odd: Path) -> None:
    """The script starts a program that only says what reaches it."""
    hostile = "a 'b' \"c\" $(touch made) `touch made` ; touch made\n\ttouch made \\ ü {d} ${e}"
    stub = odd / "my python"
    stub.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
    )
    stub.chmod(0o755)
    data = str(odd / hostile.replace("/", ""))
    environment = {"PLAIN": "1", "HOSTILE": hostile, "EMPTY": ""}
    request = fake_request(data=data, env=environment, seed=7)
    layout = request.space.layouts()[0]
    export_layout(odd / "export", layout, request, "deepspeed")
    more = ["--checkpoints", f"{odd}/a $(touch made)", "--steps", "5 6"]
    for chosen, added in (({}, []), ({"STEPS": "3 4", "PLAIN": "2"}, []), ({}, more)):
        process = subprocess.run(
            [odd / "export" / "launch.sh", *added],
            env={"PATH": os.environ["PATH"], "PYTHON": str(stub), **chosen},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (process.returncode, process.stderr) == (0, "")
        arguments, seen = json.loads(process.stdout)
        kept = {name: chosen.get(name, value) for name, value in environment.items()}
        assert {name: seen[name] for name in environment} == kept
        options = dict(itertools.pairwise(arguments))
        assert options["--data"] == data and options["--seed"] == "7"
        assert options["--layout"] == str(odd / "export" / "layout.json")
        steps = arguments.index("--steps")
        assert arguments[steps:] == ["--steps", chosen.get("STEPS", "20"), *added]
        assert arguments[:3] == ["-m", "torch.distributed.run", "--standalone"]
    assert not list(odd.rglob("made"))


UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
RUNNERS = {"os.system", "os.popen", "torch.load", "eval", "exec"}


def test_nothing_is_given_to_a_shell_and_nothing_unpickled() -> None:
    files = [
        file
        for name in ("autotune", "trainables")
        for file in REPOSITORY.glob(f"{name}/**/*.py")
        if "testing" not in file.parts  # contracts for tests pickle what they made themselves
    ]
    assert len(files) > 50
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    assert not {name.name for name in names} & UNPICKLERS, file
                case ast.ImportFrom(module=module):
                    assert module not in UNPICKLERS, file
                case ast.Call(func=called, keywords=keywords):
                    assert ast.unparse(called) not in RUNNERS, file
                    assert not {word.arg for word in keywords} & {"shell", "allow_pickle"}, file


def test_reading_runs_recordings_and_models_unpickles_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", trainable="simulated")
    run_to_the_end(store, trials=3)
    store.write_pruned([])
    (tmp_path / "runs.csv").write_text(RECORDED_RUNS)
    (tmp_path / "model.json").write_text(json.dumps(MODEL))
    (tmp_path / "device.json").write_text(device_to_json(H100))
    code = f"""
import sys
from pathlib import Path
from autotune.hardware import device_named
from autotune.inputs import read_json
from autotune.calibration.recorded_runs import read_sweeps
from autotune.store.run_directory import open_run
import openpyxl, pickle, pyarrow.parquet
heard = []
sys.addaudithook(
    lambda event, _: heard.append(event) if event in ("pickle.find_class", "os.system") else None
)
folder = Path({str(tmp_path)!r})
store = open_run(folder / "run")
assert len(store.trials()) == 3 and store.pruned() == []
assert read_sweeps(folder / "runs.csv")
device_named(str(folder / "device.json"))
read_json(str(folder / "model.json"), what="model")
assert not heard, heard
pickle.loads(pickle.dumps(Path))
assert heard, "the hook hears"
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=REPOSITORY
    )
    assert process.returncode == 0, process.stderr
