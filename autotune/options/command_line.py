"""What all our command lines share: bad input is one line on the standard error and status 2."""

import ipaddress
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from autotune.errors import InputError, NodeCheckFailed
from autotune.inputs import LARGEST_AMOUNT, LARGEST_COUNT, SMALLEST_AMOUNT

_PLAIN_WIDTH = 130

EXIT_BAD_INPUT = 2
EXIT_NOTHING_WORKED = 3
EXIT_INTERRUPTED = 130


def command_line(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a click command; the exit status. The command returns its own, None meaning 0."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            return _refuse(f"arguments must be UTF-8 text, got {argument!r}")
    try:
        status = command.main(args=list(arguments), standalone_mode=False)
    except click.ClickException as error:
        return _refuse(error.format_message())
    except InputError as error:
        return _refuse(_with_option(error, _invoked(command, arguments)))
    except NodeCheckFailed as error:
        return _refuse(str(error))
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    return int(status or 0)


class _Count(click.IntRange):
    name = "integer"


class _Amount(click.FloatRange):
    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):  # it is in every range
            self.fail(f"{value!r} is not a valid {self.name}.", param, ctx)
        return number


class _Path(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value):
            self.fail("a path must not be empty, got ''", param, ctx)
        try:
            Path(value).exists()
        except OSError as error:  # too long a name, a folder that must not be read
            self.fail(f"{error.strerror}: {str(value)!r}", param, ctx)
        return Path(value)


class _IpAddress(click.ParamType[str]):
    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            self.fail(f"must be an IP address such as 127.0.0.1, got {value!r}", param, ctx)


COUNT = _Count(min=1, max=LARGEST_COUNT)
"""A whole number from 1."""
AMOUNT = _Amount(min=SMALLEST_AMOUNT, max=LARGEST_AMOUNT)
"""A positive quantity in a unit that suits it."""
FACTOR = _Amount(min=1, max=LARGEST_AMOUNT)
"""How many times."""
SECONDS = _Amount(min=0, min_open=True, max=1e7)
"""A duration: positive, and short enough for the operating system's timers."""
IP_ADDRESS = _IpAddress()
"""Where to listen."""
PATH = _Path()
"""A file or folder that may be there; its name is one that the operating system takes."""


def plain_console(*, stderr: bool = False) -> Console:
    """The standard output, or error, for text as it is: nothing in a name is taken for markup."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def _invoked(command: click.Command, arguments: Sequence[str]) -> click.Command:
    """The command itself, or the one of a group that the arguments name."""
    if isinstance(command, click.Group):
        for name in arguments:
            if (found := command.get_command(click.Context(command), name)) is not None:
                return found
    return command


def _with_option(error: InputError, command: click.Command) -> str:
    """The sentence of a field's error, with the command's option (or argument) for that field."""
    for parameter in command.params:
        if parameter.name == error.field:
            return error.with_field_as(
                parameter.opts[0]
                if isinstance(parameter, click.Option)
                else parameter.human_readable_name
            )
    return str(error)


def print_error(sentence: str) -> None:
    """One line on the standard error, whatever the sentence holds."""
    one_line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(sentence.split()))
    print(f"error: {one_line}", file=sys.stderr)


def _refuse(sentence: str) -> int:
    print_error(sentence)
    return EXIT_BAD_INPUT
