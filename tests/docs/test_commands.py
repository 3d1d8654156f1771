"""Every shell command of the documentation is accepted, and run where it ends in a moment."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from autotune.options.command_line import command_line
from tests.autotune.simulate import new_store, run_to_the_end
from tests.conftest import REPOSITORY
from tests.docs.accepted import check, click_command
from tests.docs.shell import PAGES, documented, scripts, simple_commands

COMMANDS = documented()
DATA = REPOSITORY / "autotune"


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_it_is_accepted(words: list[str]) -> None:
    check(words)


def test_every_block_is_shell() -> None:
    for page in PAGES:
        for script in scripts(page):
            said = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
            assert said.returncode == 0, (page, script, said.stderr)


@pytest.mark.parametrize(
    "line",
    [
        "autotune plan --spaces llm13b",
        "autotune run --space tiny --max-trials none",
        "autotune plan --precision fp64 | cat",
        "python -m autotune.run --resume DIR --no-such-option",
        "python -m trainables.deepspeed_llm --layouts {}",
        "python benchmarks/gpu.py --outs x",
        "sbatch --nodes=8 examples/clusters/slurm.sh --spaces llm13b",
        "sbatch --partitions=a examples/clusters/slurm.sh --space llm13b",
        "ray start --heads",
        "ray exec examples/clusters/ray-up.yaml 'autotune run --spaces llm13b'",
        "ray up examples/clusters/missing.yaml",
        "pip install -c missing.txt .",
        "pip install .[missing]",
        "pip install --no-such-option .",
        "tensorboard --logdirs runs",
        "mlflow ui --backend runs",
        "make missing",
        "FOO=1 nohup unknown-program > log 2>&1 &",
    ],
)
def test_a_wrong_one_is_not(line: str) -> None:
    (words, *_) = simple_commands(line)
    with pytest.raises((AssertionError, click.ClickException)):
        check(words)


def subcommand(words: list[str]) -> str | None:
    """The subcommand of `autotune` that the words call."""
    found = click_command(words)
    package, _, name = found[0].callback.__module__.rpartition(".") if found else ("", "", "")
    return name if package == "autotune.commands" else None


# These end in a moment; a search does with --dry-run.
RUN = {
    name: words
    for name, words in COMMANDS.items()
    if subcommand(words) in ("plan", "run", "export", "init_command")
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search."""
    directory = tmp_path_factory.mktemp("search") / "run"
    run_to_the_end(new_store(directory, max_trials=4, trainable="simulated"))
    return directory


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with everything that commands of the pages read."""
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    (tmp_path / "train.py").write_text("import argparse\nargparse.ArgumentParser()\n")
    shutil.copy(REPOSITORY / "examples" / "model.json", tmp_path / "config.json")
    trainer = json.loads((DATA / "cost" / "data" / "trainers" / "fsdp2.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps({**trainer, "name": "mine"}))
    probe = tmp_path / "probes" / "tiny"
    probe.mkdir(parents=True)
    shutil.copy(DATA / "hardware/data/devices/cpu.json", probe / "device.json")
    shutil.copy(DATA / "hardware/data/networks/one-machine.json", probe / "network.json")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.mark.parametrize("words", RUN.values(), ids=RUN)
def test_it_runs(words: list[str], folder: Path, finished: Path) -> None:
    found = click_command(words)
    assert found is not None
    command, arguments = found
    name = subcommand(words)
    if name == "run":
        arguments = [*arguments, "--dry-run"]
    # The run directory that it reads is there, and the one that it writes is not.
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "--resume" or (name == "export" and not before):
            (folder / word).parent.mkdir(exist_ok=True)
            shutil.copytree(finished, folder / word)
    assert command_line(command, arguments) == 0
