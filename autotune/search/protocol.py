"""The ask/tell interface of every search."""

import dataclasses
from collections.abc import Iterable
from typing import Protocol

from autotune.layout import Layout
from autotune.search.prior import Prediction
from autotune.trial.trial import Outcome


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a finished trial taught."""

    layout: Layout
    outcome: Outcome
    step_seconds: float | None
    """Median step time; also of a stopped trial's few steps; None where nothing was measured."""
    peak_memory_gib: float | None = None
    """Maximum over ranks; None where it is not known."""


NOTHING_LEFT = "every layout was tried or ruled out"
"""Why a search ends that has no reason of its own."""


class Search(Protocol):
    """Chooses the next layout. Never proposes a layout that was asked, told or discarded."""

    @property
    def stopped_because(self) -> str:
        """Why `ask` returned None."""

    def ask(self) -> Layout | None:
        """The next layout to try, or None when there is none left."""

    def tell(self, observation: Observation) -> None:
        """Learn from a finished trial, whether or not it was asked for (warm start)."""

    def discard(self, layouts: Iterable[Layout]) -> None:
        """Never propose these: they were ruled out."""

    def prediction(self, layout: Layout) -> Prediction | None:
        """What is expected of a layout, as far as the search knows; None without a cost model."""
