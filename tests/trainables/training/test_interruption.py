"""What is left by a training that is killed, and checkpoints that cannot be read."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from autotune.models import model_from_mapping
from tests.trainables.reference import plain_decoder
from tests.trainables.training.launching import MODEL, command, environment, trained

# Large enough that writing a checkpoint takes a while.
LARGE = {**MODEL, "hidden_size": 256, "vocab_size": 16_384, "num_hidden_layers": 2}
LAYOUT = {"data_parallel": 2}
STEPS = 30


def test_the_validation_loss_is_that_of_a_separate_evaluation(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(512, size=257)
    np.save(tmp_path / "validation.npy", ids)
    validation = ["--validation-data", tmp_path / "validation.npy", "--validation-batches", "2"]
    run = trained({}, "--steps", "2", "--checkpoints", tmp_path / "saved", *validation)
    assert run.status == 0, run.errors
    network = plain_decoder(model_from_mapping(MODEL))
    states = tmp_path / "saved" / "global_step2" / "mp_rank_00_model_states.pt"
    network.load_state_dict(torch.load(states, weights_only=False)["module"])
    rows = torch.from_numpy(ids)
    with torch.no_grad():
        loss = float(network(rows[:-1].view(16, 16), rows[1:].view(16, 16)))
    assert run.steps[1]["validation_loss"] == pytest.approx(loss, abs=1e-5)
    assert "validation_loss" not in run.steps[0]

    # Of the right size, but no file of torch.
    states.write_bytes(bytes(states.stat().st_size))
    again = trained({}, "--steps", "3", "--resume-from", tmp_path / "saved")
    assert again.status != 0 and again.steps == []
    (sentence,) = [line for line in again.errors.splitlines() if line.startswith("error: ")]
    assert sentence.startswith("error: --resume-from: cannot read ")


def kill_when(due: Callable[[], bool], words: list[str]) -> None:
    """Kill all processes of a training as soon as it is due."""
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
    ) as process:
        deadline = time.monotonic() + 200
        while not due():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        launcher = psutil.Process(process.pid)
        for killed in (*launcher.children(recursive=True), launcher):
            killed.kill()


def check_goes_on(folder: Path, whole: list[float]) -> None:
    """The checkpoint that `latest` names is whole, and leads to the same losses."""
    saved = folder / "saved"
    done = int((saved / "latest").read_text().removeprefix("global_step"))
    options = ["--steps", STEPS, "--resume-from", saved, "--checkpoints", saved]
    run = trained(LAYOUT, *options, "--metrics", folder / "metrics.jsonl", model=LARGE)
    assert run.status == 0, run.errors
    assert run.steps[0]["step"] == done > 0
    assert run.losses == pytest.approx(whole[done:], abs=1e-5)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert [line["loss"] for line in lines] == pytest.approx(whole, abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_that_is_killed_goes_on_from_its_last_whole_checkpoint(tmp_path: Path) -> None:
    whole = trained(LAYOUT, "--steps", STEPS, model=LARGE)
    assert whole.status == 0, whole.errors

    for when in ("in a save", "in a step"):
        folder = tmp_path / when.replace(" ", "-")
        folder.mkdir()
        saved, metrics = folder / "saved", folder / "metrics.jsonl"

        def is_saving(saved: Path = saved) -> bool:
            """The second checkpoint has begun, and is not complete."""
            files = list(saved.glob("global_step4/*.pt"))
            return bool(files) and (saved / "latest").read_text().strip() == "global_step2"

        def is_between(saved: Path = saved, metrics: Path = metrics) -> bool:
            """The third step is being made, after the first checkpoint."""
            return (saved / "latest").exists() and len(metrics.read_text().splitlines()) == 3

        options = ["--steps", STEPS, "--checkpoints", saved, "--metrics", metrics]
        every = ["--save-every", "2"]
        words = command(LAYOUT, *options, *every, model=LARGE)
        kill_when(is_saving if when == "in a save" else is_between, words)
        if when == "in a save":
            assert (saved / "latest").read_text().strip() == "global_step2"
            assert (saved / "global_step4").exists(), "half of a checkpoint"
        check_goes_on(folder, whole.losses)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_training_with_status_1(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    words = command(LAYOUT, "--steps", "100000", "--metrics", metrics)
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        while not (metrics.exists() and metrics.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        ranks = psutil.Process(process.pid).children()
        ranks[1].send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 1 and "SIGKILL" in errors
