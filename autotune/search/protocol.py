"""The ask/tell interface of every search."""

import dataclasses
from collections.abc import Iterable
from typing import Protocol

from autotune.layout import Layout
from autotune.search.prior import Prediction
from autotune.trial.trial import Outcome


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The result of a finished trial."""

    layout: Layout
    outcome: Outcome
    step_seconds: float | None
    """Median step time, also of a stopped trial; None where no step was measured."""
    peak_memory_gib: float | None = None
    """Maximum over ranks; None where it was not measured."""


NOTHING_LEFT = "every layout was tried or ruled out"
"""Default of `Search.stopped_because`."""


class Search(Protocol):
    """Chooses the next layout. Never proposes one that was asked, told or discarded before."""

    @property
    def stopped_because(self) -> str:
        """Why `ask` returned None."""

    def ask(self) -> Layout | None:
        """The next layout to try; None ends the search."""

    def tell(self, observation: Observation) -> None:
        """Learn from a finished trial, also of a layout that was not asked for (warm start)."""

    def discard(self, layouts: Iterable[Layout]) -> None:
        """Never propose these: they were ruled out."""

    def prediction(self, layout: Layout) -> Prediction | None:
        """The current prediction for a layout; None without a cost model."""
