"""Layouts as arrays, so that the cost model is vectorised over thousands of layouts."""

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
    """One array [n] per input of the cost model, as an attribute; n is the number of layouts.

    For example `tensor_parallel`, `micro_batches`, `recompute_block` (flags are 0 or 1). The names
    are those of `Dimension.columns` in `autotune.layout`.
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
                categories = list(dict.fromkeys(values))
                indices = np.array(mapped(values, categories.index), dtype=np.int64)
                self._categories[name] = (categories, indices)

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

    @functools.cached_property
    def product_shapes(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Matrix products have the same shape where micro-batch and tensor-parallel size are the
        same: one layout of each such pair [pairs], and the pair of each layout [n]."""
        pairs = self.micro_batch_size + 1j * self.tensor_parallel
        _, first, pair = np.unique(pairs, return_index=True, return_inverse=True)
        return first, pair

    def of_category(self, dimension: str, constants: Mapping[str, float], name: str) -> Array:
        """The constant [n] that depends on each layout's value of a categorical dimension.

        `name` is a format string for the value, such as ``attention.{}.efficiency``.
        """
        categories, indices = self._categories[dimension]
        values = np.array([constants[name.format(category)] for category in categories])
        return values[indices]

    def of_kernel(self, constants: Mapping[str, float], name: str) -> Array:
        """The constant `name` [n] of each layout's attention kernel."""
        return self.of_category("attention_kernel", constants, f"attention.{{}}.{name}")


def columns_of(layouts: Sequence[Layout]) -> Columns:
    """Arrays in the order of `layouts`."""
    return Columns(layouts)


def mapped(values: Sequence[Hashable], function: Callable[[Any], T]) -> list[T]:
    """`function` of each value; it is called once per distinct value."""
    results = {value: function(value) for value in dict.fromkeys(values)}
    return [results[value] for value in values]


def total_of(parts: Any) -> Array:
    """The sum over the fields of a dataclass of arrays."""
    fields = dataclasses.fields(parts)
    total: Array = np.sum([getattr(parts, field.name) for field in fields], axis=0)
    return total
