"""Whether a command line is accepted by its program: options exist, their values are legal.

Each program is asked by its own parser. A program that is not known here is an error: say below how
its command lines can be checked.
"""

import importlib
import re
import tomllib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import click

from autotune.__main__ import autotune
from tests.conftest import REPOSITORY
from tests.docs.shell import simple_commands


def check(words: Sequence[str]) -> None:
    """Raise AssertionError or click.ClickException where the program would refuse its words."""
    program, *arguments = words
    assert program in _PROGRAMS, f"no check for {program!r}: {words}"
    try:
        _PROGRAMS[program](arguments)
    except SystemExit as exit:  # of parsers that are not click's
        raise AssertionError(f"{program} refuses {arguments}") from exit


def click_command(words: Sequence[str]) -> tuple[click.Command, list[str]] | None:
    """The click command of this project that the words call, and its arguments; None: another."""
    program, *rest = words
    if program == "autotune":
        return _subcommand(autotune, rest)
    if program not in ("python", "python3") or not rest:
        return None
    if rest[0] == "-m" and rest[1].startswith("autotune."):
        return _subcommand(autotune, [rest[1].removeprefix("autotune."), *rest[2:]])
    if rest[0] == "-m" and rest[1].startswith("trainables."):
        return importlib.import_module(f"{rest[1]}.__main__").main, rest[2:]
    if rest[0].startswith("benchmarks/"):
        module = rest[0].removesuffix(".py").replace("/", ".")
        return importlib.import_module(module).main, rest[1:]
    return None


def _subcommand(group: click.Group, words: Sequence[str]) -> tuple[click.Command, list[str]]:
    found: click.Command = group
    rest = list(words)
    while isinstance(found, click.Group) and rest:
        inner = found.get_command(click.Context(found), rest[0])
        assert inner is not None, f"no command {rest[0]!r} of {found.name}"
        found, rest = inner, rest[1:]
    return found, rest


def _parse(command: click.Command, arguments: Sequence[str]) -> None:
    command.make_context(command.name or "", list(arguments))


def _autotune(arguments: Sequence[str]) -> None:
    if arguments:  # else it is asked for its completion
        _parse(*_subcommand(autotune, arguments))


def _run_options(arguments: Sequence[str]) -> None:
    """Of the files in examples/clusters, which pass them on."""
    _autotune(["run", *arguments])


def _python(arguments: Sequence[str]) -> None:
    found = click_command(["python", *arguments])
    if found is not None:
        _parse(*found)
        return
    if arguments[:2] == ["-m", "pytest"]:
        arguments = [word for word in arguments if word.startswith("tests/")]
    assert (REPOSITORY / arguments[0]).is_file(), arguments


def _make(arguments: Sequence[str]) -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    for target in arguments:
        assert re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE), target


def _pip(arguments: Sequence[str]) -> None:
    from pip._internal.commands import create_command

    options, packages = create_command(arguments[0]).parse_args(list(arguments[1:]))
    for file in options.constraints:
        assert (REPOSITORY / file).is_file(), file
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    for package in packages:
        if extras := re.fullmatch(r"\.\[(.*)\]", package):
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"]), package


def _ray(arguments: Sequence[str]) -> None:
    from ray.scripts.scripts import cli

    command, rest = _subcommand(cli, arguments)
    _parse(command, rest)
    for word in rest:
        if word.endswith(".yaml") and not word.startswith("-"):
            assert (REPOSITORY / word).is_file(), word
        elif command.name == "exec":
            for words in simple_commands(word):
                check(words)


def _launch_script(arguments: Sequence[str]) -> None:
    training = importlib.import_module("trainables.deepspeed_llm.training.__main__").main
    _parse(training, ["--layout", "{}", "--model", "{}", *arguments])


def _sbatch(arguments: Sequence[str]) -> None:
    place = next(i for i, word in enumerate(arguments) if not word.startswith("-"))
    script = (REPOSITORY / arguments[place]).read_text("utf-8")
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    for option in arguments[:place]:  # all of them are also in the file's head
        assert f"\n#SBATCH {option.partition('=')[0]}=" in script, option
    _run_options(arguments[place + 1 :])


def _kubectl(arguments: Sequence[str]) -> None:
    verb, option, file = arguments
    assert (verb, option) == ("apply", "-f") and (REPOSITORY / file).is_file(), arguments


def _eval(arguments: Sequence[str]) -> None:
    inner = re.fullmatch(r"\$\((.*)\)", " ".join(arguments))
    assert inner, arguments
    for words in simple_commands(inner[1]):
        check(words)


def _imported(module: str) -> Any:
    """A library that warns about others when it is imported."""
    with warnings.catch_warnings(action="ignore"):
        return importlib.import_module(module)


def _mlflow(arguments: Sequence[str]) -> None:
    cli = _imported("mlflow.cli").cli
    _parse(*_subcommand(cli, arguments))


def _tensorboard(arguments: Sequence[str]) -> None:
    program = _imported("tensorboard.program")
    program.TensorBoard().configure(argv=["tensorboard", *arguments])


def _of_the_system(_: Sequence[str]) -> None:
    """Not ours to check."""


_PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "./launch.sh": _launch_script,
    "autotune": _autotune,
    "cat": _of_the_system,
    "curl": _of_the_system,
    "eval": _eval,
    "grep": _of_the_system,
    "examples/clusters/one-machine.sh": _run_options,
    "kubectl": _kubectl,
    "make": _make,
    "mlflow": _mlflow,
    "pip": _pip,
    "python": _python,
    "python3": _python,
    "ray": _ray,
    "sbatch": _sbatch,
    "source": _of_the_system,
    "ssh": _of_the_system,
    "tensorboard": _tensorboard,
}
