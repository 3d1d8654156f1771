"""The ask/tell interface of every search."""

import dataclasses
from collections.abc import Iterable
from typing import Protocol

from autotune.layout import Layout
from autotune.trial import Outcome


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a finished trial taught."""

    layout: Layout
    outcome: Outcome
    step_seconds: float | None
    """Median step time; also of a stopped trial's few steps; None where nothing was measured."""


class Search(Protocol):
    """Chooses the next layout. Never proposes a layout that was asked, told or discarded."""

    def ask(self) -> Layout | None:
        """The next layout to try, or None when there is none left."""

    def tell(self, observation: Observation) -> None:
        """Learn from a finished trial, whether or not it was asked for (warm start)."""

    def discard(self, layouts: Iterable[Layout]) -> None:
        """Never propose these: they were ruled out."""
