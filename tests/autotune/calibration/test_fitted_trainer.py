"""Calibrating a trainer of the user's from runs of its command."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from autotune.commands.calibrate import main
from autotune.cost.model import CostModel
from autotune.cost.trainers import StatedTrainer, trainer_of, trainer_to_json
from autotune.layout import Layout
from autotune.named_spaces import load_space
from autotune.options.command_line import command_line
from autotune.options.search_options import SearchOptions, request_from_options
from autotune.store.run_directory import RunStore, create_run
from autotune.trial.trial import Outcome
from tests.autotune.calibration.test_fit import trial
from trainables.simulated import World

SPACE = load_space("llm13b").restricted(
    {"zero_stage": [1], "rmsnorm_kernel": ["fused"], "micro_batch_size": [1, 2, 4]}
)
LAYOUTS = SPACE.layouts()
FIX = ("zero_stage=1", "rmsnorm_kernel=fused", "micro_batch_size=1,2,4")
SEED = 2


def run_of_a_command(folder: Path, world: str, *, trials: int, trainer: str = "") -> RunStore:
    """A search by a command that trains as `world` does. Its trials are simulated."""
    recipe = folder / "command.toml"
    flags = [f"--{name}={{{name}}}" for name in ("tensor_parallel", "pipeline_parallel")]
    flags += [f"{{{name}}}" for name in ("micro_batch_size", "activation_checkpointing")]
    flags += [f"{{{name}}}" for name in ("sequence_parallel", "attention_kernel")]
    recipe.write_text(f"argv = {['train', *flags]}\n{trainer}\n")
    options = SearchOptions(space="llm13b", trainable="command", command=recipe, fix=FIX)
    store = create_run(folder / "run", request_from_options(options))
    chosen = np.random.default_rng(0).choice(len(LAYOUTS), trials, replace=False)
    layouts: list[Layout] = [LAYOUTS[index] for index in chosen]
    results = World(SPACE.model, "bf16", SPACE.cluster, trainer=world, seed=SEED).results(layouts)
    for number, layout in enumerate(layouts):
        measured = {
            "step_seconds": float(results.step_seconds[number]),
            "peak_memory_gib": float(results.peak_memory_gib[number]),
        }
        fits = bool(results.fits[number])
        record = trial(number, layout, Outcome.OK if fits else Outcome.OOM, **measured)
        if not fits:
            record = trial(number, layout, Outcome.OOM)
        store.add_trial(dataclasses.replace(record, trainable="command"), [])
    return store


def errors(trainer: StatedTrainer, world: str) -> tuple[float, float]:
    """Mean relative errors of step time and memory over all layouts that run in the world."""
    true = World(
        SPACE.model, "bf16", SPACE.cluster, trainer=world, seed=SEED, chance_of_layouts=False
    ).results(LAYOUTS)
    found = CostModel(SPACE.model, "bf16", SPACE.cluster, trainer=trainer).estimate(LAYOUTS)
    time = np.abs(found.step_seconds / true.step_seconds - 1)[true.fits]
    memory = np.abs(found.peak_memory_gib / true.peak_memory_gib - 1)[true.fits]
    return float(time.mean()), float(memory.mean())


def test_a_trainer_is_calibrated_from_runs_of_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = run_of_a_command(tmp_path, "nemo", trials=20)
    out = tmp_path / "mine.json"
    words = [str(store.directory), "--trainer-out", str(out), "--trainer-name", "ours"]
    assert command_line(main, words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    before, after = map(float, re.findall(r"([\d.]+)% → ([\d.]+)%", shown)[0])
    assert "fitted on the other half of the runs" in shown and after < 0.5 * before
    assert f"use it with --trainer {out}" in shown
    mine = trainer_of(str(out))
    assert mine.name == "ours" and str(store.directory) in mine.source
    (time, memory), (time_after, memory_after) = (
        errors("deepspeed_llm", "nemo"),
        errors(mine, "nemo"),
    )
    assert time_after < 0.5 * time and memory_after < 0.5 * memory
    # Hardware is what it was.
    own = CostModel(SPACE.model, "bf16", SPACE.cluster).constants
    new = CostModel(SPACE.model, "bf16", SPACE.cluster, trainer=mine).constants
    assert all(new[name] == own[name] for name in ("gemm_efficiency", "network_efficiency"))


def test_what_cannot_be_calibrated_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = dataclasses.replace(trainer_of("nemo"), name="mine")
    (tmp_path / "mine.json").write_text(trainer_to_json(mine))
    store = run_of_a_command(tmp_path, "nemo", trials=3, trainer='trainer = "mine.json"')
    run = str(store.directory)
    for words, sentence in (
        ([run], "--trainer-out must be given where a file describes the trainer of the runs"),
        (
            [run, "--trainer-out", str(tmp_path / "a.json")],
            "at least 4 layouts that ran or",
        ),
    ):
        assert command_line(main, words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and sentence in line
    assert not (tmp_path / "a.json").exists()
