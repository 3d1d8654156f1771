"""The console script `autotune`; `python -m autotune.run` is its command `run`."""

import sys

import click

from autotune import __version__
from autotune.calibrate import main as calibrate
from autotune.options.command_line import command_line
from autotune.plan import main as plan
from autotune.run import main as run


@click.group()
@click.version_option(__version__)
def commands() -> None:
    """Find the parallel layout that trains a language model fastest."""


commands.add_command(run, "run")
commands.add_command(plan, "plan")
commands.add_command(calibrate, "calibrate")


def main() -> int:
    """Run the command line; the exit status."""
    return command_line(commands)


if __name__ == "__main__":
    sys.exit(main())
