"""`autotune init-command` and `autotune try`, as a user calls them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.trainables.command.recipes import FOLDER
from trainables.command.reading import how_figures_were_read
from trainables.command.recipe import recipe_of
from trainables.command.recipe_file import read_recipe
from trainables.command.template import command_template

MEGATRON = """
parser.add_argument('--tensor-model-parallel-size', type=int)
parser.add_argument('--pipeline-model-parallel-size', type=int)
parser.add_argument('--micro-batch-size'), parser.add_argument('--global-batch-size')
parser.add_argument('--seq-length'), parser.add_argument('--train-iters')
parser.add_argument('--sequence-parallel', action='store_true')
"""


def autotune(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "autotune", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_a_template_starts_the_script_with_the_options_that_it_has(tmp_path: Path) -> None:
    script, file = tmp_path / "pretrain.py", tmp_path / "mine.toml"
    script.write_text(MEGATRON)
    file.write_text(command_template(script, file))
    values = read_recipe(file)
    argv = " ".join(values["argv"])
    assert argv.startswith("torchrun --nnodes {nodes} ") and " pretrain.py " in argv
    assert "--tensor-model-parallel-size {tensor_parallel} " in argv
    assert "--train-iters {steps}" in argv and argv.endswith("{sequence_parallel}")
    assert values["values"]["sequence_parallel"] == {"false": [], "true": ["--sequence-parallel"]}
    assert set(recipe_of(values).varied) == {
        "tensor_parallel", "pipeline_parallel", "micro_batch_size", "sequence_parallel",
    }  # fmt: skip
    assert "step_seconds" in values["figures"]


@pytest.mark.parametrize("name", ["fsdp2", "hf_trainer", "accelerate_zero"])
def test_a_template_of_an_example_says_what_its_file_says(name: str, tmp_path: Path) -> None:
    text = command_template(REPOSITORY / "examples" / f"{name}.py", tmp_path / "mine.toml")
    made, written = (
        recipe_of(tomllib.loads(toml))
        for toml in (text, (REPOSITORY / "examples" / f"{name}.toml").read_text("utf-8"))
    )
    assert made.varied == written.varied
    assert {word for word in written.argv if word.startswith("--")} <= set(made.argv)


def test_a_shell_script_is_started_by_bash(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text("srun python train.py --tp $1")
    values = tomllib.loads(command_template(script, tmp_path / "mine.toml"))
    assert values["argv"] == ["bash", "train.sh", "--tp", "{tensor_parallel}"]


def test_init_command_writes_a_new_file_only(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    assert (done := autotune("init-command", script)).returncode == 2
    assert "script: cannot read" in done.stderr and not list(tmp_path.iterdir())
    script.write_text("--steps")
    assert (done := autotune("init-command", script)).returncode == 0, done.stderr
    assert read_recipe(tmp_path / "train.toml")["argv"][-2:] == ["--steps", "{steps}"]
    assert (done := autotune("init-command", script)).returncode == 2
    assert re.search("--out must be a new file, got '.*train.toml', which exists", done.stderr)


def recipe_file(folder: Path, behaviour: str, pattern: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(
        f"argv = ['{sys.executable}', 'script.py', '{behaviour}', '{{micro_batch_size}}']\n"
        f"processes = 'rank'\ndirectory = '{FOLDER}'\n"
        f"[env]\nPYTHONPATH = '{REPOSITORY}'\n"
        f"[figures]\nstep_seconds = {{pattern = '{pattern}', scale = 0.001}}\n"
    )
    return file


def test_try_runs_one_layout_and_says_how_its_output_was_read(tmp_path: Path) -> None:
    file, logs = recipe_file(tmp_path, "trains", r"elapsed ms: ([\d.]+)"), tmp_path / "logs"
    options = ("--space", "tiny", "--nodes", "1", "--command", file, "--logs", logs)
    done = autotune("try", *options, "--layout", '{"micro_batch_size": 2}')
    assert done.returncode == 0, done.stderr
    assert "trying tp1 pp1 dp2 " in done.stdout and " mb2 " in done.stdout
    assert "step 0  0.020 s  (warm-up)" in done.stdout and "step 1  0.020 s\n" in done.stdout
    assert "ok, median step 0.020 s" in done.stdout
    assert re.search(r"step_seconds: \d+ lines of \d+, the first has '20.0' x 0.001", done.stdout)
    assert (logs / "rank-1.log").exists()
    assert autotune("try", *options).stderr.startswith("error: --logs must be empty or new, got")


def test_try_shows_the_output_that_no_pattern_matches(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, "silent", r"seconds=([\d.]+)")
    done = autotune("try", "--space", "tiny", "--nodes", "1", "--command", file)
    assert done.returncode == 1, done.stderr
    assert "crashed: the command ended without a step that could be read" in done.stdout
    assert re.search(r"step_seconds: no line of \d matches 'seconds=", done.stdout)
    assert "    trained without a word" in done.stdout


def test_how_a_function_read_the_logs(tmp_path: Path) -> None:
    (tmp_path / "rank-0.log").write_text("start\nelapsed ms: 20 | loss: 5\n")
    values = {"argv": ["x"], "directory": str(FOLDER), "reader": "reader.py:read"}
    said = how_figures_were_read(values, tmp_path)
    assert said[0] == "reader reader.py:read: 1 lines of 2 end a step"
    assert said[1].startswith("the first gives {'step_seconds': 0.02, 'loss': 5.0}: elapsed")
    assert how_figures_were_read({**values, "reader": "reader.py:raises"}, tmp_path)[0] == (
        "reader reader.py:raises: ZeroDivisionError: division by zero"
    )
    assert how_figures_were_read(values, tmp_path / "none") == [f"no output is in {tmp_path}/none"]
