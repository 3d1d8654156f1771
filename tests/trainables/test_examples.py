"""The models of examples/models are searched for real on CPU ranks, as the documentation says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune import load
from tests.conftest import REPOSITORY

MODELS = sorted((REPOSITORY / "examples" / "models").glob("*.json"))


@pytest.mark.timeout(280)
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_a_model_is_searched_and_its_best_layout_trains(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "autotune.run", "--model", str(model), "--out", str(out)]
    command += ["--nodes", "2", "--gpus-per-node", "2", "--gpu", "cpu", "--trainable", "deepspeed"]
    command += ["--sequence-length", "64", "--global-batch-size", "16", "--max-trials", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    run = load(out)
    architecture = run.request.space.model.architecture
    assert json.loads(model.read_text())["model_type"].startswith(architecture)
    losses = run.steps.to_pandas().groupby("trial_id").loss.first()
    # About log(512) before anything is learned, the same in every layout.
    assert losses.min() > 5.5 and losses.max() - losses.min() < 1e-3
    exported = subprocess.run(
        ["bash", str(out / "export" / "launch.sh")],
        env={**os.environ, "PYTHON": sys.executable, "STEPS": "2"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert exported.returncode == 0, exported.stderr
    summary = json.loads(exported.stdout.splitlines()[-1])
    assert summary["outcome"] == "ok"
    assert summary["losses"][0] == pytest.approx(losses.iloc[0], abs=1e-3)
