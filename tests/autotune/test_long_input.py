"""Errors stay short, however long what they tell of: no value is shown in more than 100 characters
(and no message of another library in more than 300).

(An argument of a process has at most 128 KiB on Linux.)
"""

import json
from pathlib import Path

import click
import pytest

import autotune.commands.export
from autotune.errors import LONGEST_VALUE, shortened
from tests.autotune.test_bad_input import (
    BAD_OPTIONS,
    COMMANDS,
    MODEL,
    NEEDED,
    Capture,
    folder,
    refusal,
)
from tests.trainables.recorded_runs import RECORDED_RUNS

__all__ = ["folder"]  # a fixture: nothing is started, and nothing is left

LONG = 100_000
X, WORDS = "x" * LONG, "ab " * (LONG // 3)
TOO_LONG = ("x" * (LONGEST_VALUE + 1), "ab " * (LONGEST_VALUE // 3 + 1))
OPTIONS = [
    (command, option)
    for command, options in BAD_OPTIONS.items()
    for option in options
    if option != "--address"  # Ray looks at it
]


def check_short(line: str) -> None:
    assert len(line) < 1_000, len(line)
    assert not any(text in line for text in TOO_LONG), line


def test_a_path_keeps_its_ends() -> None:
    path = "/start/" + "folder/" * 50 + "file.json"
    assert len(shortened(path)) == LONGEST_VALUE
    assert shortened(path).startswith("/start/") and shortened(path).endswith("/file.json")
    assert shortened(path[:LONGEST_VALUE]) == path[:LONGEST_VALUE]


@pytest.mark.parametrize("value", [X, WORDS, f"{X}=1", f"tensor_parallel={X}", "9" * LONG])
@pytest.mark.parametrize("form", ["separate", "joined"])
@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_an_option(
    command: str, option: str, form: str, value: str, folder: Path, capsys: Capture
) -> None:
    if command in ("run", "try") and option == "--env" and "=" in value:
        pytest.skip("the value of a variable may be long")
    needed = {**NEEDED[command]}
    if option in ("--resume", "--runs") or (command, option) == ("plan", "--model"):
        needed.pop("--space", None)
    words = [word for pair in needed.items() if pair[0] != option for word in pair]
    if command == "calibrate":
        runs = folder.parent / "runs.csv"
        runs.write_text(RECORDED_RUNS)
        words.append(str(runs))
    elif option == "--runs":
        words += ["--trainable", "replay"]
    given = [f"{option}={value}"] if form == "joined" else [option, value]
    check_short(refusal(capsys, command, *words, *given))


@pytest.mark.parametrize("argument", [f"--{X}", f"--{X}={X}", X, WORDS, f"-{X}", "\udcff" * LONG])
@pytest.mark.parametrize("command", [*COMMANDS, "export"])
def test_an_argument(
    command: str, argument: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "export", autotune.commands.export.main)
    words = [word for pair in NEEDED.get(command, {}).items() for word in pair]
    check_short(refusal(capsys, command, *words, argument))


LONG_TEXTS = [
    json.dumps({X: 1}),
    json.dumps({WORDS: 1}),
    f'{{"{X}": 1, "{X}": 2}}',
    f'{{"{WORDS}": 1, "{WORDS}": 2}}',
    f'{{"a": {X}}}',
    '{"a": ' + "9" * LONG + "}",
    json.dumps([X]),
    *(
        json.dumps({key: value})
        for key in ("hidden_size", "tensor_parallel", "name", "torch_dtype", "attention_kernel")
        for value in (X, WORDS, [X], {X: X}, [1] * LONG)
    ),
]


@pytest.mark.parametrize("text", LONG_TEXTS, ids=lambda text: text[:30])
def test_a_file(text: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "given.json"
    file.write_text(text)
    model = json.dumps(MODEL)
    for words in (
        ("plan", "--space", "tiny", "--explain", file),
        ("plan", "--model", file),
        ("plan", "--space", "llm13b", "--gpu", file),
        ("plan", "--space", "llm13b", "--network", file),
        ("run", "--model", file),
        ("train", "--model", model, "--layout", file, "--steps", 2),
    ):
        check_short(refusal(capsys, *words))


LONG_SPACES = [
    f"raise ValueError({X!r})",
    f"raise ValueError({WORDS!r})",
    f"raise {X}",
    f"import {X}",
    f"class {X}(BaseException): pass\nraise {X}({WORDS!r})",
    f"class {X}: pass\nspace = {X}",
    f"space = {WORDS!r}",
    f"{X} = ",
    f"import autotune\ndef space(): raise autotune.InputError({WORDS!r})",
    "import dataclasses\nfrom search_spaces import tiny\n"
    f"def space(): return dataclasses.replace(tiny.space(), name={WORDS!r})",
    "import dataclasses\nfrom search_spaces import tiny\n"
    f"def space(): return dataclasses.replace(tiny.space(), tensor_parallel=(1,) * {LONG})",
    "import dataclasses\nfrom search_spaces import tiny\n"
    f"def space(): return dataclasses.replace(tiny.space(), {X}=1)",
]


@pytest.mark.parametrize("code", LONG_SPACES, ids=lambda code: code[:50])
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_space(command: str, code: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "space.py"
    file.write_text(code)
    line = refusal(capsys, command, "--space", file)
    assert len(line) < 1_000 and TOO_LONG[0] not in line


@pytest.mark.parametrize("column", RECORDED_RUNS.splitlines()[0].split(","))
@pytest.mark.parametrize("value", [X, WORDS, "9" * LONG])
def test_a_cell_of_recorded_runs(column: str, value: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "runs.csv"
    header, first, *rest = RECORDED_RUNS.splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    file.write_text("\n".join([header, ",".join({**cells, column: value}.values()), *rest]))
    check_short(refusal(capsys, "run", "--trainable", "replay", "--runs", file, "--dry-run"))
    check_short(refusal(capsys, "calibrate", file))


def test_what_other_libraries_say(capsys: Capture) -> None:
    @click.command()
    @click.option("--choice", type=click.Choice(["a"]))
    @click.argument("size", type=int)
    def command(choice: str, size: int) -> None: ...

    COMMANDS["other"] = command
    try:
        for words in (("--choice", WORDS, "1"), (f"--choice={WORDS}", "1"), (WORDS,), ("1", WORDS)):
            check_short(refusal(capsys, "other", *words))
    finally:
        del COMMANDS["other"]
