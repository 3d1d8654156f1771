"""The exported launch.sh, as a user runs it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.cluster import Cluster
from autotune.export import export_layout
from autotune.layout import layout_from_mapping
from autotune.models import model_from_mapping
from tests.autotune.simulate import fake_request
from tests.trainables.training.launching import MODEL, Ended, ended, rewound


def exported(folder: Path, **sizes: Any) -> Path:
    """The launch.sh of a layout."""
    request = fake_request()
    model = model_from_mapping(MODEL)
    layout = layout_from_mapping(sizes, model)
    device = request.space.cluster.device
    cluster = Cluster(nodes=1, gpus_per_node=layout.world_size, device=device)
    space = dataclasses.replace(request.space, model=model, cluster=cluster)
    export_layout(folder / "export", layout, dataclasses.replace(request, space=space), "deepspeed")
    return folder / "export" / "launch.sh"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return exported(tmp_path, tensor_parallel=2)


def launched(script: Path, *arguments: object, **variables: str) -> Ended:
    return ended([str(script), *map(str, arguments)], **{"PYTHON": sys.executable, **variables})


def check_resumed(script: Path, tmp_path: Path, steps: int) -> None:
    """It goes on from the middle as if it had not been interrupted."""
    half = steps // 2
    rng = np.random.default_rng(0)
    rng.integers(50, size=20_000).astype("uint16").tofile(tmp_path / "tokens.bin")
    np.save(tmp_path / "validation.npy", rng.integers(50, size=129))
    options = ["--data", tmp_path / "tokens.bin", "--data-dtype", "uint16", "--steps", steps]
    options += ["--validation-data", tmp_path / "validation.npy", "--validate-every", steps // 3]
    options += ["--learning-rate", "1e-3", "--min-learning-rate", "0", "--warmup-steps", "5"]
    save = ["--checkpoints", tmp_path / "saved", "--save-every", half]
    whole = launched(script, *options, *save, "--metrics", tmp_path / "metrics.jsonl")
    assert whole.status == 0, whole.errors
    assert whole.summary is not None and whole.summary["outcome"] == "ok"
    assert whole.losses[-1] < whole.losses[0] - 0.1

    middle = rewound(tmp_path / "saved", half, tmp_path / "middle")
    save = ["--checkpoints", middle, "--resume-from", middle, "--keep-checkpoints", "1"]
    again = launched(script, *options, *save, "--metrics", tmp_path / "metrics.jsonl")
    assert again.status == 0, again.errors
    assert [step["step"] for step in again.steps] == list(range(half, steps))
    for figure in ("loss", "grad_norm", "learning_rate", "validation_loss"):
        expected = [step[figure] for step in whole.steps[half:] if figure in step]
        found = [step[figure] for step in again.steps if figure in step]
        assert found == pytest.approx(expected, abs=1e-5), figure
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole.steps[:half] + again.steps
    last = f"global_step{steps}"
    assert [path.name for path in middle.glob("global_step*")] == [last]
    assert (middle / "latest").read_text().strip() == last


def test_a_training_goes_on_where_it_was(script: Path, tmp_path: Path) -> None:
    check_resumed(script, tmp_path, steps=12)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_long_training_goes_on_where_it_was(tmp_path: Path) -> None:
    sizes = {"tensor_parallel": 2, "pipeline_parallel": 2, "sequence_parallel": True}
    check_resumed(exported(tmp_path, **sizes), tmp_path, steps=50)


def test_running_out_of_memory_is_said_and_is_status_1(script: Path) -> None:
    run = launched(script, "--memory-gib", "0.001")
    assert run.status == 1
    assert run.summary is not None and run.summary["outcome"] == "oom"
    assert [line for line in run.errors.splitlines() if line.startswith("error: out of memory: ")]


def test_bad_input_is_one_line_before_any_rank_is_started(script: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        (["--data", "/none"], "--data: no such file or folder: '/none'"),
        (["--resume-from", tmp_path / "none"], "--resume-from: no checkpoint in "),
        (["--speed", "3"], "No such option '--speed'"),
    ):
        run = launched(script, *arguments)
        assert (run.status, run.steps) == (2, [])
        assert run.errors.startswith(f"error: {sentence}") and run.errors.count("\n") == 1


def test_an_interpreter_without_the_project_is_one_line(script: Path, tmp_path: Path) -> None:
    assert sys.executable not in script.read_text() and "/python" not in script.read_text()
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    process = subprocess.run(
        [script],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr == (
        "error: DeepSpeed and autotune-layouts must be installed for python3 (or set PYTHON)\n"
    )
