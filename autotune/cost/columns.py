"""Layouts as arrays, so that thousands are estimated in one go."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autotune.layout import DIMENSIONS, Layout

Array = NDArray[np.float64]

T = TypeVar("T")


class Columns:
    """One array [n] for each name that a dimension declares for the cost model, as an attribute.

    For example `tensor_parallel`, `micro_batches`, `recompute_block` (flags are 0 or 1): see
    `Dimension.columns` in `autotune.layout`.
    """

    def __init__(self, layouts: Sequence[Layout]) -> None:
        """Arrays in the order of `layouts`."""
        self._length = len(layouts)
        self._arrays: dict[str, Array] = {}
        self._categories: dict[str, tuple[list[Any], NDArray[np.int64]]] = {}
        for name, dimension in DIMENSIONS.items():
            values = [getattr(layout, name) for layout in layouts]
            for column, read in dimension.columns.items():
                self._arrays[column] = np.array(mapped(values, read), dtype=np.float64)
            if dimension.is_category:
                kinds = list(dict.fromkeys(values))
                places = np.array(mapped(values, kinds.index), dtype=np.int64)
                self._categories[name] = (kinds, places)

    def __len__(self) -> int:
        return self._length

    def __getattr__(self, name: str) -> Array:
        if name.startswith("_") or name not in self._arrays:
            raise AttributeError(f"no dimension declares the column {name!r}")
        return self._arrays[name]

    @functools.cached_property
    def sequence_shards(self) -> Array:
        """Tensor-parallel size with sequence parallelism, else 1."""
        return np.where(self.sequence_parallel > 0, self.tensor_parallel, 1.0)

    def of_category(self, dimension: str, constants: Mapping[str, float], name: str) -> Array:
        """The constant `name` of each layout's value of a dimension, such as that of its attention
        kernel. Constants of values are named GROUP.VALUE.CONSTANT."""
        kinds, places = self._categories[dimension]
        values = np.array([constants[name.format(kind)] for kind in kinds])
        return values[places]

    def of_kernel(self, constants: Mapping[str, float], name: str) -> Array:
        """The constant `name` of each layout's attention kernel."""
        return self.of_category("attention_kernel", constants, f"attention.{{}}.{name}")


def columns_of(layouts: Sequence[Layout]) -> Columns:
    """Arrays in the order of `layouts`."""
    return Columns(layouts)


def mapped(values: Sequence[Hashable], function: Callable[[Any], T]) -> list[T]:
    """`function` of each value, called once per different value."""
    results = {value: function(value) for value in dict.fromkeys(values)}
    return [results[value] for value in values]


def total_of(parts: Any) -> Array:
    """The sum over the fields of a dataclass of arrays."""
    fields = dataclasses.fields(parts)
    total: Array = np.sum([getattr(parts, field.name) for field in fields], axis=0)
    return total
