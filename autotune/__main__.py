"""The console script `autotune`; `python -m autotune.run` is its command `run`."""

import importlib
import pkgutil
import sys

import click

from autotune import __version__, commands
from autotune.options.command_line import command_line


class _Commands(click.Group):
    """Each module of `autotune/commands` is a subcommand, imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{commands.__name__}.{cmd_name}")
        command: click.Command = module.main
        return command


@click.group(cls=_Commands, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def autotune(context: click.Context) -> None:
    """Find the parallel layout that trains a language model fastest."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> int:
    """Run the command line and return its exit status."""
    return command_line(autotune)


if __name__ == "__main__":
    sys.exit(main())
