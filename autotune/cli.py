"""What all our command lines share: bad input is one line on the standard error and status 2."""

import sys
from collections.abc import Sequence

import click

from autotune.errors import InputError, NodeCheckFailed

SECONDS = click.FloatRange(min=0, min_open=True, max=1e7)
"""A duration: positive, and short enough for the operating system's timers."""
GIBIBYTES = click.FloatRange(min=0, min_open=True, max=1e9)
"""An amount of memory: positive and finite."""

EXIT_BAD_INPUT = 2
EXIT_NOTHING_WORKED = 3
EXIT_INTERRUPTED = 130


def command_line(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a click command; the exit status. The command returns its own, None meaning 0."""
    try:
        status = command.main(args=arguments, standalone_mode=False)
    except click.ClickException as error:
        return _refuse(error.format_message())
    except (InputError, NodeCheckFailed) as error:
        return _refuse(str(error))
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    return int(status or 0)


def _refuse(sentence: str) -> int:
    one_line = " ".join(sentence.split())
    print(f"error: {one_line}", file=sys.stderr)
    return EXIT_BAD_INPUT
