"""What all command lines share: one line on the standard error, options in the place of fields."""

import click
import pytest

from autotune.errors import InputError, in_field
from autotune.options.command_line import command_line

Capture = pytest.CaptureFixture[str]


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--max-trials", type=int)
def command(runs: tuple[str, ...], max_trials: int | None) -> int:
    """Raises what it is told to."""
    if runs:
        raise InputError("no such file: 'x'", field="runs")
    if max_trials == 3:
        raise InputError("must be at least 4, got 3", field="max_trials")
    with in_field("trainable"):
        raise InputError("cannot be\nloaded: \x1b[31m")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-trials", "3"], "--max-trials must be at least 4, got 3"),
        (["x"], "RUNS: no such file: 'x'"),
        ([], r"trainable: cannot be loaded: \x1b[31m"),
        (["--speed"], "No such option '--speed'."),
    ],
)
def test_an_error_names_the_option_of_its_field(
    arguments: list[str], sentence: str, capsys: Capture
) -> None:
    assert command_line(command, arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {sentence}\n" and captured.out == ""


def test_a_group_looks_at_the_command_that_was_invoked(capsys: Capture) -> None:
    group = click.Group(commands={"inner": command})
    assert command_line(group, ["inner", "--max-trials", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: --max-trials must")


def test_the_field_is_named_once() -> None:
    with pytest.raises(InputError) as error, in_field("outer"), in_field("inner"):
        raise InputError("must be 1, got 2")
    assert str(error.value) == "inner must be 1, got 2"
    assert error.value.with_field_as("--inner") == "--inner must be 1, got 2"
    assert InputError("nothing").with_field_as("--x") == "nothing"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["--version"]])
def test_the_console_script_shows_its_help(arguments: list[str], capsys: Capture) -> None:
    from autotune.__main__ import autotune

    assert command_line(autotune, arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: ") or "version" in shown
    if not arguments:
        for name in ("calibrate", "export", "plan", "run"):
            assert name in shown
