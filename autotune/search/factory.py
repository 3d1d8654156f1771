"""Searches by their name on the command line."""

from collections.abc import Callable, Sequence

from autotune.errors import InputError
from autotune.layout import Layout
from autotune.search.ordered import grid_search, random_search
from autotune.search.protocol import Search
from autotune.search.tpe import TpeSearch

SEARCHES: dict[str, Callable[[Sequence[Layout], int], Search]] = {
    "hyperopt": TpeSearch,
    "random": random_search,
    "grid": grid_search,
}
"""Makers by name; each takes the layouts of the space and a seed."""


def make_search(name: str, layouts: Sequence[Layout], *, seed: int) -> Search:
    """A search over those layouts. Raises InputError for an unknown name."""
    if name not in SEARCHES:
        raise InputError(f"--search must be one of {', '.join(SEARCHES)}, got {name!r}")
    return SEARCHES[name](layouts, seed)
