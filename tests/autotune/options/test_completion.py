"""Completion in the shell, as the quickstart says how to switch it on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.named_spaces import available_spaces
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "index.md").read_text("utf-8")
# Bash offers what a function writes into COMPREPLY for the words of the line before the cursor.
LINE = """
{switched_on}
set -e
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ echo "compopt:$2"; }}
$(complete -p autotune | sed -E 's/.* -F ([^ ]+) .*/\\1/') autotune
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}


def switched_on(shell: str) -> str:
    """The line of the page for the shell."""
    (line,) = [line for line in PAGE.splitlines() if f"_AUTOTUNE_COMPLETE={shell}_source" in line]
    return line.partition("  #")[0]


def completed(words: str, folder: Path) -> list[str]:
    script = LINE.format(switched_on=switched_on("bash"), words=words)
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("autotune pl", ["plan"]),
        ("autotune run --space ''", available_spaces()),
        ("autotune plan --space llm13b --gpu b", ["b200"]),
        ("autotune run --search gr", ["grid"]),
        ("autotune run --precis", ["--precision"]),
    ],
)
def test_bash_offers_commands_options_and_names(
    words: str, offered: list[str], tmp_path: Path
) -> None:
    assert completed(words, tmp_path) == offered


def test_bash_offers_files_where_no_name_begins_so(tmp_path: Path) -> None:
    assert "compopt:default" in completed("autotune run --space ./m", tmp_path)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_their_source(shell: str) -> None:
    variable, _, value = switched_on(shell).strip('eval "$(').split()[0].partition("=")
    assert value == f"{shell}_source"
    done = subprocess.run(
        ["autotune"],
        env={**environment(), variable: value},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"_AUTOTUNE_COMPLETE={shell}_complete" in done.stdout
    word = {"zsh": "compdef", "fish": "complete"}[shell]
    assert f"{word} " in done.stdout and done.stderr == ""
