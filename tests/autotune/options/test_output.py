"""Where the output of a command cannot be written: one sentence, or the status of a closed pipe."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainables.recorded_runs import RECORDED_RUNS

PLAN = ("autotune.plan", "--space", "tiny")
COMMANDS = {
    "plan": PLAN,
    "plan as JSON": (*PLAN, "--json"),
    "explain": (*PLAN, "--explain", "{}"),
    "dry run": ("autotune.run", "--space", "tiny", "--dry-run"),
    "dry run as JSON": ("autotune.run", "--space", "tiny", "--dry-run", "--json"),
    "help": (*PLAN, "--help"),
    "the group": ("autotune",),
    "worker": ("trainables.deepspeed_llm", "--help"),
}


def run(words: tuple[str, ...], streams: str, **options: Path) -> tuple[int, str, str]:
    command = shlex.join([sys.executable, "-m", *words])
    process = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} {streams}"],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    ("streams", "reason"),
    [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_output_that_cannot_be_written_is_one_sentence(
    words: tuple[str, ...], streams: str, reason: str
) -> None:
    sentence = f"error: the standard output cannot be written: {reason}\n"
    assert run(words, streams) == (2, "", sentence)


@pytest.mark.parametrize("name", ["plan", "plan as JSON", "help"])
def test_a_reader_that_leaves_ends_a_command_without_a_word(name: str) -> None:
    words = COMMANDS[name]
    # The first reader is gone before anything is written.
    assert run(words, "| true") == (141, "", "")
    status, first, errors = run(words, "| head -1")
    assert status in (0, 141) and first.count("\n") == 1 and errors == ""


@pytest.mark.parametrize("streams", ["2>&-", "2> /dev/full"])
def test_an_error_that_cannot_be_shown_is_not_shown_elsewhere(streams: str) -> None:
    assert run((*PLAN, "--nodes", "0"), streams) == (2, "", "")
    status, plan, _ = run(PLAN, streams)
    assert status == 0 and "layouts ranked" in plan


def test_a_fit_is_written_before_it_is_printed(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(RECORDED_RUNS)
    status, _, errors = run(("autotune.calibrate", "runs.csv"), "> /dev/full", cwd=tmp_path)
    assert status == 2 and errors.startswith("error: the standard output cannot be written: ")
    assert (tmp_path / "a100-80gb.json").exists()


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Else what a library or a child process prints would be written into that file."""
    space = tmp_path / "space.py"
    space.write_text(
        "import os\nfrom search_spaces import tiny\n"
        "def space():\n"
        "    with open(__file__) as file:\n"
        "        assert file.fileno() > 2\n"
        "    return tiny.space()\n"
    )
    status, _, errors = run(
        ("autotune.plan", "--space", str(space)), "<&- >&- 2> errors", cwd=tmp_path
    )
    assert status == 2 and errors == ""
    assert (tmp_path / "errors").read_text().endswith("cannot be written: Bad file descriptor\n")
