"""Searches that follow an order fixed at the start: grid and random. What they are told is moot."""

import random
from collections.abc import Iterable, Sequence

from autotune.layout import Layout
from autotune.search.candidates import Candidates
from autotune.search.protocol import Observation


class OrderedSearch:
    """Proposes layouts in a given order. A `Search`."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._candidates = Candidates(layouts)

    def ask(self) -> Layout | None:
        """The next layout of the order."""
        layout = self._candidates.first()
        if layout is not None:
            self._candidates.remove([layout])
        return layout

    def tell(self, observation: Observation) -> None:
        """Only marks the layout as done."""
        self._candidates.remove([observation.layout])

    def discard(self, layouts: Iterable[Layout]) -> None:
        """Never propose these."""
        self._candidates.remove(layouts)


def grid_search(layouts: Sequence[Layout], seed: int) -> OrderedSearch:
    """Every layout in the order of the space; the seed plays no part."""
    return OrderedSearch(layouts)


def random_search(layouts: Sequence[Layout], seed: int) -> OrderedSearch:
    """Every layout in an order drawn from the seed."""
    return OrderedSearch(random.Random(seed).sample(layouts, len(layouts)))
