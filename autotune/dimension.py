"""What a dimension of a layout declares, once, for everything that goes through all dimensions.

The dimensions themselves are the fields of `autotune.layout.Layout`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from autotune.cluster import Cluster
from autotune.model import Model, Precision

Chosen = Mapping[str, Any]
"""Values of a layout's dimensions by name, as far as they are chosen: the declared order."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What a layout is for."""

    model: Model
    precision: Precision
    cluster: Cluster | None = None
    """Where it must run; None: anywhere."""


@dataclasses.dataclass(frozen=True, slots=True)
class Alias:
    """Several values that make the same layout are generated under one of them."""

    value: Any
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One dimension: stands in the annotation of its field, which has its type and its default."""

    values: tuple[Any, ...] | None
    """What a search space offers unless it says otherwise; None: the value follows from others."""
    word: Callable[[Any], str]
    """Of a layout: the short word of this dimension in `Layout.describe`; empty for none."""
    columns: Mapping[str, Callable[[Any], float]] = dataclasses.field(default_factory=dict)
    """What the cost model reads of a value, by the name of its array (`autotune.cost.columns`)."""
    is_category: bool = False
    """Whether the cost model also has constants per value (`Columns.of_category`)."""
    place: Callable[[Any], tuple[float, ...]] | None = None
    """Where a value lies for the Gaussian process that corrects predictions: one unit is a doubling
    of a size, two another kind of layout. None only where the value follows from others."""
    rule: Callable[[Chosen, Task], str | None] | None = None
    """Why the value is illegal after the dimensions before it, or None; see `autotune.rules`."""
    follows: Callable[[Chosen, Task], Any] | None = None
    """The value, where it follows from the dimensions before it."""
    can_be_restricted: bool = True
    """Whether a space may name the values that it allows (of one that follows: None is any)."""
    alias: Callable[[Chosen], Alias | None] | None = None
    """The one value under which layouts are generated that are the same for every value."""
    is_implementation: bool = False
    """Whether it only chooses who computes the same thing: tables show the fastest alone."""

    @property
    def is_searched(self) -> bool:
        """Whether a search chooses the value."""
        return self.values is not None


def one_hot(values: tuple[Any, ...], *, distance: float) -> Callable[[Any], tuple[float, ...]]:
    """Places of values that have no order: every two are as far from each other."""
    return lambda value: tuple(distance if value == other else 0.0 for other in values)
