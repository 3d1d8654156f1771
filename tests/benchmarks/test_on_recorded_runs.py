"""The benchmarks on recorded runs: format of the output, and targets on the available sweeps."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.calibration.recorded_runs import read_sweeps
from tests.conftest import REPOSITORY

PAPER_RUNS = REPOSITORY.parent / "shared" / "paper_runs"
HEAD = (
    "sweep,trial_id,model,sequence_length,world_size,global_batch_size,tensor_parallel,"
    "pipeline_parallel,data_parallel,micro_batch_size,activation_checkpointing,"
    "sequence_parallel,attention_kernel,rmsnorm_kernel,outcome,step_seconds,mfu\n"
)
ROW = "{sweep},1,13B,2048,32,2048,{tp},{pp},{dp},1,none,False,flash2,True,{outcome},{seconds},\n"
SMALL = [(1, 1, "oom", ""), (1, 2, "ok", 57.0), (2, 1, "ok", 60.0), (2, 2, "ok", 66.0)]


def small_sweep(folder: Path, name: str) -> Path:
    rows = [
        ROW.format(sweep=name, tp=tp, pp=pp, dp=32 // (tp * pp), outcome=outcome, seconds=seconds)
        for tp, pp, outcome, seconds in SMALL
    ]
    file = folder / f"{name}.csv"
    file.write_text(HEAD + "".join(rows))
    return file


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"benchmarks/{script}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=280)


def results(script: str, runs: Path, out: Path, *more: object) -> dict[str, Any]:
    process = run(script, "--runs", runs, "--json", out, *more)
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_an_unseen_sweep_is_judged_by_the_shipped_constants(tmp_path: Path) -> None:
    found = results("cost_accuracy", small_sweep(tmp_path, "new"), tmp_path / "out.json")
    (judged,) = found["sweeps"].values()
    assert (judged["rows"], judged["ok"], judged["oom"]) == (4, 3, 1)
    assert 0 < judged["step_time_mape"] < 0.2
    assert found["mean"]["step_time_mape"] == judged["step_time_mape"]


def test_searches_are_replayed_on_an_unseen_sweep(tmp_path: Path) -> None:
    file = small_sweep(tmp_path, "new")
    found = results("search_replay", file, tmp_path / "out.json", "--seeds", 2)
    assert set(found["sweeps"]["new"]) == {"guided", "hyperopt", "random", "rules"}
    rules = found["sweeps"]["new"]["rules"]
    assert rules["median_trials"] == 2, "the first runs out of memory"
    # 120 s of start-up each, and 15 steps of the one that ran.
    assert rules["median_gpu_hours"] == pytest.approx(32 * (2 * 120 + 15 * 57) / 3600)


def test_a_sweep_of_the_fit_is_never_judged_by_it(tmp_path: Path) -> None:
    process = run("cost_accuracy", "--runs", small_sweep(tmp_path, "13B_2k_32_sp"))
    assert process.returncode == 2
    assert "the shipped constants were fitted on sweep 13B_2k_32_sp" in process.stderr


@pytest.mark.slow
@pytest.mark.skipif(not PAPER_RUNS.is_dir(), reason="the recorded runs are not ours to ship")
def test_the_six_sweeps(tmp_path: Path) -> None:
    accuracy = results("cost_accuracy", PAPER_RUNS, tmp_path / "accuracy.json")["mean"]
    assert accuracy["step_time_mape"] < 0.04
    assert accuracy["oom_f1"] > 0.975 and accuracy["spearman"] > 0.92
    replays = results("search_replay", PAPER_RUNS, tmp_path / "replay.json")["sweeps"]
    trials = {
        name: [found[name]["median_trials"] for found in replays.values()]
        for name in ("guided", "hyperopt", "random", "rules")
    }
    assert sum(trials["guided"]) <= 11 and max(trials["guided"]) <= 4
    assert sum(trials["guided"]) < sum(trials["rules"]) < sum(trials["random"]) / 10
    hours = {
        name: sum(found[name]["median_gpu_hours"] for found in replays.values())
        for name in ("guided", "rules")
    }
    assert hours["guided"] < hours["rules"]
    assert statistics.mean(len(sweep.runs) for sweep in read_sweeps(PAPER_RUNS)) > 100
