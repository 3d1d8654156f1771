"""Declaration of one dimension of a layout, such as the tensor-parallel size or the ZeRO stage.

Each dimension is declared once, on its field of `autotune.layout.Layout`. The search space, the
cost model, the search and the reports loop over these declarations.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from autotune.cluster import Cluster
from autotune.model import Model, Precision

Chosen = Mapping[str, Any]
"""Values of the dimensions chosen so far, by name, in the order of declaration."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What a layout has to train, and on which cluster."""

    model: Model
    precision: Precision
    cluster: Cluster | None = None
    """The cluster; None: rules that depend on a cluster are not checked."""
    deepspeed_engine: bool = True
    """Whether the limits of DeepSpeed's engines on ZeRO stages hold."""


@dataclasses.dataclass(frozen=True, slots=True)
class Alias:
    """The one value under which several equivalent values are generated."""

    value: Any
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One dimension, stored in the `Annotated` type of its field; the field has the default."""

    values: tuple[Any, ...] | None
    """Default values of a search space; None: the value is derived from other dimensions."""
    word: Callable[[Any], str]
    """The text for this dimension in `Layout.describe`, from the layout; empty: left out."""
    columns: Mapping[str, Callable[[Any], float]] = dataclasses.field(default_factory=dict)
    """Numeric inputs of the cost model from a value, by array name (`autotune.cost.columns`)."""
    is_category: bool = False
    """Whether the cost model has separate constants per value (`Columns.of_category`)."""
    place: Callable[[Any], tuple[float, ...]] | None = None
    """Features of a value for the Gaussian process that corrects predictions: distance 1 is a
    doubling of a size, 2 another kind of layout. None where the value is derived, and for kernels,
    whose constants have errors of their own."""
    rule: Callable[[Chosen, Task], str | None] | None = None
    """Why the value is illegal given the earlier dimensions, or None; see `autotune.rules`."""
    follows: Callable[[Chosen, Task], Any] | None = None
    """Computes a derived value from the earlier dimensions."""
    can_be_restricted: bool = True
    """Whether a space may list allowed values (for a derived dimension, None allows any)."""
    alias: Callable[[Chosen], Alias | None] | None = None
    """The value under which equivalent values are generated; None where they are not equivalent."""
    is_implementation: bool = False
    """Whether it only selects a kernel for the same computation: plans list the fastest one."""

    @property
    def is_searched(self) -> bool:
        """Whether a search chooses the value (else it is derived)."""
        return self.values is not None
