"""Shared by all commands: option types, exit statuses, and errors as one line on stderr."""

import ipaddress
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from autotune.errors import (
    LONGEST_VALUE,
    AutotuneError,
    InputError,
    NothingFits,
    Resumable,
    shortened,
)
from autotune.inputs import LARGEST_AMOUNT, LARGEST_COUNT, SMALLEST_AMOUNT, shown
from autotune.options.output import OutputFailed, lasting_output, standard_streams

# A word may have the quotes and the punctuation of a value; a sentence some values.
_LONGEST_WORD = LONGEST_VALUE + 10
_LONGEST_SENTENCE = 800

EXIT_BAD_INPUT = 2
EXIT_NOTHING_WORKED = 3
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # as of a command that SIGPIPE ends

# Of errors that a command does not handle itself; of all others EXIT_BAD_INPUT.
_STATUS: dict[type[AutotuneError], int] = {
    NothingFits: EXIT_NOTHING_WORKED,
    Resumable: EXIT_INTERRUPTED,
}


def command_line(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a click command and return the exit status: what the command returns, None being 0."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with standard_streams():
            return _run(command, arguments)
    except OutputFailed as failure:
        return told_output_failure(failure)


def told_output_failure(failure: OutputFailed) -> int:
    """Tell it, unless whoever reads has read enough (`| head`). Returns the exit status."""
    if failure.reader_is_gone:
        return EXIT_BROKEN_PIPE
    with lasting_output():
        print_error(f"the standard output cannot be written: {failure}")
    return EXIT_BAD_INPUT


def _run(command: click.Command, arguments: Sequence[str]) -> int:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            return _refuse(f"arguments must be UTF-8 text, got {shown(argument)}", arguments)
    try:
        status = command.main(args=list(arguments), standalone_mode=False)
    except click.ClickException as error:
        return _refuse(error.format_message(), arguments)
    except InputError as error:
        return _refuse(_with_option(error, _invoked(command, arguments)), arguments)
    except AutotuneError as error:
        print_error(_with_short_arguments(str(error), arguments))
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
            self.fail(f"{shown(value)} is not a valid {self.name}.", param, ctx)
        return number


class _Path(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value):
            self.fail("a path must not be empty, got ''", param, ctx)
        try:
            Path(value).exists()
        except OSError as error:  # the name is too long, or a folder cannot be read
            self.fail(f"{error.strerror}: {shown(value)}", param, ctx)
        return Path(value)


class _IpAddress(click.ParamType[str]):
    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            self.fail(f"must be an IP address such as 127.0.0.1, got {shown(value)}", param, ctx)


COUNT = _Count(min=1, max=LARGEST_COUNT)
"""Option type: an integer of at least 1."""
COUNT_OR_ZERO = _Count(min=0, max=LARGEST_COUNT)
"""Option type: an integer of at least 0."""
AMOUNT = _Amount(min=SMALLEST_AMOUNT, max=LARGEST_AMOUNT)
"""Option type: a positive number."""
FACTOR = _Amount(min=1, max=LARGEST_AMOUNT)
"""Option type: a factor of at least 1."""
SHARE = _Amount(min=0, max=1)
"""Option type: a number from 0 to 1."""
SECONDS = _Amount(min=0, min_open=True, max=1e7)
"""Option type: a positive duration, short enough for the operating system's timers."""
PORT = click.IntRange(1, 65535)
"""Option type: a port to listen on."""
IP_ADDRESS = _IpAddress()
"""Option type: an IP address to listen on."""
PATH = _Path()
"""Option type: the path of a file or folder, which need not exist."""


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
        else parameter.human_readable_name.strip("[]")  # of an optional argument
        for parameter in command.params
    }
    sentence = str(error)
    if error.field in options:
        sentence = error.with_field_as(options[error.field])
    return re.sub(r"`(\w+)`", lambda found: options.get(found[1], found[0]), sentence)


def print_error(sentence: str) -> None:
    """Print one line on stderr; line breaks and unprintable characters are escaped.

    Words and sentences that are too long, whoever wrote them, are cut.
    """
    words = (shortened(word, _LONGEST_WORD) for word in sentence.split())
    one_line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(words))
    print(f"error: {shortened(one_line, _LONGEST_SENTENCE)}", file=sys.stderr)


def _with_short_arguments(sentence: str, arguments: Sequence[str]) -> str:
    """The sentence with every argument shortened: click shows those at fault in full."""
    for argument in arguments:
        for part in (argument, *argument.split("=", 1)):
            if len(part) > LONGEST_VALUE:
                for text in (part, repr(part)[1:-1]):
                    sentence = sentence.replace(text, shortened(text))
    return sentence


def _refuse(sentence: str, arguments: Sequence[str]) -> int:
    print_error(_with_short_arguments(sentence, arguments))
    return EXIT_BAD_INPUT
