"""The console script `autotune`; `python -m autotune.run` is its command `run`."""

import importlib
import pkgutil
import sys

import click

from autotune import __version__, commands
from autotune.options.command_line import command_line


class _Commands(click.Group):
    """Each module of `autotune/commands` is a subcommand, imported when it is called.

    `init_command` is `init-command`, and `try_` is `try`, which cannot be a module's name.
    """

    @property
    def _modules(self) -> dict[str, str]:
        names = (module.name for module in pkgutil.iter_modules(commands.__path__))
        return {name.rstrip("_").replace("_", "-"): name for name in names}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._modules:
            return None
        module = importlib.import_module(f"{commands.__name__}.{self._modules[cmd_name]}")
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
