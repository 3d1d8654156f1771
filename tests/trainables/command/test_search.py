"""Searches with a training command, as docs/your-script.md says."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from autotune import load
from autotune.layout import LAYOUT_COLUMNS
from tests.conftest import REPOSITORY
from trainables.command.recipe import PLACEHOLDERS, recipe_of

PAGE = (REPOSITORY / "docs" / "your-script.md").read_text("utf-8")


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        [sys.executable, "-m", "autotune.run", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=700,
    )


@pytest.mark.parametrize(
    "trials", [2, pytest.param(12, marks=pytest.mark.slow)], ids=["2 trials", "12 trials"]
)
@pytest.mark.timeout(800)
def test_a_script_with_fsdp2_is_searched(trials: int, tmp_path: Path) -> None:
    (command,) = re.findall(r"^python -m autotune.run (.*)$", PAGE, re.M)
    out = tmp_path / "run"
    # The guided search may be content with fewer.
    limits = ["--max-trials", str(trials), "--search", "random", "--out", str(out)]
    done = run(*command.split(), *limits)
    assert done.returncode == 0, done.stderr
    found = load(out)
    table = found.trials.to_pandas()
    assert set(table.trainable) == {"command"} and set(table.outcome) <= {"ok", "stopped"}
    assert set(table.pipeline_parallel) == {1} and set(table.zero_stage) <= {2, 3}
    assert (table.purpose == "explore").sum() == trials
    # About log(1024) before anything is learned, the same in every layout.
    losses = found.steps.to_pandas().groupby("trial_id").loss.first()
    assert losses.min() > 6.5 and losses.max() - losses.min() < 1e-3
    refused = run("--resume", out, "--dry-run")
    assert refused.returncode == 2
    assert "the run starts the command ['torchrun'" in refused.stderr
    assert "--trust-run" in refused.stderr or "trust_run" in refused.stderr
    assert run("--resume", out, "--dry-run", "--trust-run").returncode == 0


def test_the_page_names_every_key_and_placeholder() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    recipe = recipe_of(tomllib.loads(text))
    assert recipe.varied == ("tensor_parallel", "micro_batch_size", "activation_checkpointing")
    keys = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
    assert keys == set(type(recipe).__dataclass_fields__)
    for name in {*PLACEHOLDERS, *LAYOUT_COLUMNS}:
        assert f"`{name}`" in PAGE
