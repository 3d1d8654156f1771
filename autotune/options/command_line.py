"""Shared by all commands: option types, and errors as one line on stderr with status 2."""

import ipaddress
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from autotune.errors import (
    AutotuneError,
    InputError,
    NothingFits,
    Resumable,
)
from autotune.inputs import LARGEST_AMOUNT, LARGEST_COUNT, SMALLEST_AMOUNT

_PLAIN_WIDTH = 130

EXIT_BAD_INPUT = 2
EXIT_NOTHING_WORKED = 3
EXIT_INTERRUPTED = 130

# Of errors that a command does not handle itself; of all others EXIT_BAD_INPUT.
_STATUS: dict[type[AutotuneError], int] = {
    NothingFits: EXIT_NOTHING_WORKED,
    Resumable: EXIT_INTERRUPTED,
}


def command_line(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a click command and return the exit status: what the command returns, None being 0."""
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
    except AutotuneError as error:
        print_error(str(error))
        statuses = (status for kind, status in _STATUS.items() if isinstance(error, kind))
        return next(statuses, EXIT_BAD_INPUT)
    except click.exceptions.Abort:
        print_error("interrupted")
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
        if math.isnan(number):  # click's range check accepts NaN
            self.fail(f"{value!r} is not a valid {self.name}.", param, ctx)
        return number


class _Path(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value):
            self.fail("a path must not be empty, got ''", param, ctx)
        try:
            Path(value).exists()
        except OSError as error:  # the name is too long, or a folder cannot be read
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
"""Option type: an integer of at least 1."""
AMOUNT = _Amount(min=SMALLEST_AMOUNT, max=LARGEST_AMOUNT)
"""Option type: a positive number."""
FACTOR = _Amount(min=1, max=LARGEST_AMOUNT)
"""Option type: a factor of at least 1."""
SECONDS = _Amount(min=0, min_open=True, max=1e7)
"""Option type: a positive duration, short enough for the operating system's timers."""
IP_ADDRESS = _IpAddress()
"""Option type: an IP address to listen on."""
PATH = _Path()
"""Option type: the path of a file or folder, which need not exist."""


def plain_console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr that prints text unchanged, without rich markup."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def _invoked(command: click.Command, arguments: Sequence[str]) -> click.Command:
    """The command, or the subcommand of a group that the arguments name."""
    if isinstance(command, click.Group):
        for name in arguments:
            subcommand = command.get_command(click.Context(command), name)
            if subcommand is not None:
                return subcommand
    return command


def _with_option(error: InputError, command: click.Command) -> str:
    """The sentence with the command's options in the place of fields.

    Those are the field at fault, at the beginning, and others that it names in backquotes.
    """
    options = {
        parameter.name: parameter.opts[0]
        if isinstance(parameter, click.Option)
        else parameter.human_readable_name
        for parameter in command.params
    }
    sentence = str(error)
    if error.field in options:
        sentence = error.with_field_as(options[error.field])
    return re.sub(r"`(\w+)`", lambda found: options.get(found[1], found[0]), sentence)


def print_error(sentence: str) -> None:
    """Print one line on stderr; line breaks and unprintable characters are escaped."""
    one_line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(sentence.split()))
    print(f"error: {one_line}", file=sys.stderr)


def _refuse(sentence: str) -> int:
    print_error(sentence)
    return EXIT_BAD_INPUT
