"""Option types of names that ship with the project; the shell completes them."""

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from autotune.cost.trainers import known_trainers
from autotune.hardware import known_devices, known_networks
from autotune.named_spaces import available_spaces


class Named(click.types.StringParamType):
    """A text that may be one of `names`, or with `or_file` the path of a file.

    Any text is converted: what it must be is checked where the option is used.
    """

    def __init__(self, names: Callable[[], Iterable[str]], *, or_file: bool = True) -> None:
        self._names = names
        self._or_file = or_file

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so; where there are none, files."""
        found = [CompletionItem(name) for name in self._names() if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")] * self._or_file


SPACE = Named(available_spaces)
"""Option type: a search space by name, or FILE.py."""
DEVICE = Named(known_devices)
"""Option type: a device by name, or FILE.json."""
NETWORK = Named(known_networks)
"""Option type: a network by name, or FILE.json."""
TRAINER = Named(known_trainers)
"""Option type: training code by name, or FILE.json."""
