"""The README's commands are accepted as they stand there."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = [words[1] for words in commands() if words[0] == "make"]
    assert targets[:2] == ["run", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.parametrize(
    "words", [w for w in commands() if w[0] == "python" and "--resume" not in w], ids=" ".join
)
def test_commands_run(words: list[str], tmp_path) -> None:
    arguments = [str(tmp_path / "run") if word.startswith("runs/") else word for word in words[1:]]
    if "autotune.run" in arguments and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    process = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=REPOSITORY, timeout=120
    )
    assert process.returncode == 0, process.stderr


def test_modules_in_the_tree_exist() -> None:
    tree = README.split("## The repository")[1]
    for name in re.findall(r"\b([a-z_]+\.py)\b", tree):
        assert list(REPOSITORY.glob(f"**/{name}")), name
