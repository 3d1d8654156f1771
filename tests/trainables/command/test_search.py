"""Searches with a training command, as docs/your-script.md says."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from autotune import load
from autotune.layout import LAYOUT_COLUMNS
from tests.conftest import REPOSITORY
from trainables.command.placeholders import PLACEHOLDERS
from trainables.command.recipe import recipe_of

PAGE = (REPOSITORY / "docs" / "your-script.md").read_text("utf-8")


def run(
    *arguments: str | Path, command: str = "run", timeout: float = 280
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "autotune", command, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


EXAMPLES = {
    "fsdp2": "examples/fsdp2.toml",
    "torchtitan": "examples/torchtitan/command.toml",
    "transformers": "examples/hf_trainer.toml",
    "accelerate": "examples/accelerate_zero.toml",
}
"""By the package that each needs, if it is one."""


LAYOUT = '{"tensor_parallel": 2}'


def needs(package: str) -> None:
    if package != "fsdp2" and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("package", EXAMPLES)
@pytest.mark.timeout(1800)
def test_an_example_is_searched(package: str, tmp_path: Path) -> None:
    needs(package)
    out = tmp_path / "run"
    # The guided search may be content with fewer.
    limits = ["--max-trials", "12", "--search", "random", "--out", str(out)]
    limits += ["--training-gpu-hours", "1000000"]  # or it may end earlier
    command = ["--space", "tiny", "--trainable", "command", "--command", EXAMPLES[package]]
    done = run(*command, *limits, timeout=1700)
    assert done.returncode == 0, done.stderr
    table = load(out).trials.to_pandas()
    assert set(table.trainable) == {"command"}
    # Two ranks to a core: some are stopped because they are slow. torchtitan refuses some layouts.
    refused = table.reason.str.contains(
        r"ValueError: Number of microbatches \(\d\) must be greater"
    )
    assert set(table[~refused].outcome) <= {"ok", "stopped"}, table[["outcome", "reason"]]
    assert (table.outcome == "ok").sum() >= 6
    assert (table.purpose == "explore").sum() == 12


def test_a_search_is_resumed_by_who_trusts_its_command(tmp_path: Path) -> None:
    (command,) = re.findall(r"^python -m autotune.run (.*)$", PAGE, re.M)
    out = tmp_path / "run"
    limits = ["--max-trials", "2", "--search", "random", "--out", str(out)]
    assert (done := run(*command.split(), *limits)).returncode == 0, done.stderr
    found = load(out)
    table = found.trials.to_pandas()
    assert set(table.pipeline_parallel) == {1} and set(table.zero_stage) <= {2, 3}
    # About log(1024) before anything is learned, the same in every layout.
    losses = found.steps.to_pandas().groupby("trial_id").loss.first()
    assert losses.min() > 6.5 and losses.max() - losses.min() < 1e-3
    refused = run("--resume", out, "--dry-run")
    assert refused.returncode == 2
    assert "the run starts the command ['torchrun'" in refused.stderr
    assert "trust_run" in refused.stderr.replace("-", "_")
    assert run("--resume", out, "--dry-run", "--trust-run").returncode == 0


@pytest.mark.parametrize(
    ("package", "layout"),
    [
        ("fsdp2", {"tensor_parallel": 2}),
        ("torchtitan", {"pipeline_parallel": 2, "micro_batch_size": 1}),
        pytest.param("torchtitan", {"tensor_parallel": 2}, marks=pytest.mark.slow),
        ("transformers", {"zero_stage": 2}),
        ("accelerate", {"zero_stage": 3, "activation_checkpointing": "full"}),
    ],
)
def test_one_layout_of_an_example_is_tried(package: str, layout: dict[str, Any]) -> None:
    needs(package)
    options = ["--space", "tiny", "--command", EXAMPLES[package], "--layout", json.dumps(layout)]
    done = run(*options, command="try")
    assert done.returncode == 0, done.stdout + done.stderr
    losses = re.findall(r"step \d  [\d.]+ s  loss ([\d.]+)", done.stdout)
    # At first about log(vocabulary). Only the last stage of a pipeline knows it, and in each step
    # the process that is heard first counts: so what was read of it is looked at, too.
    if "pipeline_parallel" in layout:
        read = re.search(r"loss: \d+ lines of \d+, the first has '([\d.]+)'", done.stdout)
        assert read and 6 < float(read[1]) < 9, done.stdout
    else:
        assert losses and 6 < float(losses[0]) < 9, done.stdout
    assert all(2 < float(loss) < 9 for loss in losses), done.stdout
    assert "\nok, median step " in done.stdout


def test_the_commands_of_the_page_are_those_that_tests_run() -> None:
    commands = re.findall(r"^(?:python -m autotune\.|autotune )(\S+) (.*)$", PAGE, re.M)
    assert [(name, words.split("  ")[0]) for name, words in commands] == [
        ("init-command", "train.py"),
        (
            "try",
            f"--space tiny --command {EXAMPLES['fsdp2']} --layout '{{\"tensor_parallel\": 2}}'",
        ),
        ("run", f"--space tiny --trainable command --command {EXAMPLES['fsdp2']}"),
    ]
    for example in EXAMPLES.values():
        assert Path(example).name in PAGE or str(Path(example).parent.name) in PAGE
        text = (REPOSITORY / example).read_text("utf-8")
        assert f"--space tiny --trainable command --command {example}\n" in text


def test_the_page_names_every_key_and_placeholder() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    recipe = recipe_of(tomllib.loads(text))
    assert recipe.varied == ("tensor_parallel", "micro_batch_size", "activation_checkpointing")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE, re.M)
    keys = {name for row in rows for name in re.findall(r"\w+", row)}
    assert keys == set(type(recipe).__dataclass_fields__)
    for name in {*PLACEHOLDERS, *LAYOUT_COLUMNS}:
        assert f"`{name}`" in PAGE
