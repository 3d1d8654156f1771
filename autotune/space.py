"""A search space: a model, a cluster, and the values that each dimension of a layout may take."""

import collections
import dataclasses
import importlib
import os
import pkgutil
import runpy
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.cluster import Cluster
from autotune.dimension import Chosen, Task
from autotune.errors import AutotuneError, InputError, in_field
from autotune.inputs import LARGEST_COUNT, Name, PositiveInt, first_problem, validated
from autotune.layout import (
    DIMENSIONS,
    FIELD_TYPES,
    LAYOUT_COLUMNS,
    NOT_OFFERED,
    RESTRICTABLE,
    SEARCHED,
    Layout,
)
from autotune.model import Model, Precision

S = TypeVar("S")

# How far from a value that leaves no layout others are tried.
_FARTHEST_ADVICE = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A branch of the space that is not generated."""

    chosen: Mapping[str, Any]
    """The dimensions chosen so far, the offending one last."""
    reason: str
    """The rule and the values."""
    combinations: int
    """Combinations of the searched dimensions' values in the branch."""

    @property
    def rule(self) -> str:
        """The reason without the values."""
        return self.reason.rpartition(", got ")[0] or self.reason


def _with_dimensions(space: type[S]) -> type[S]:
    """Give the class a field for each dimension, after `cluster`: the values that it may take."""
    own = dict(space.__annotations__)
    first = {name: own.pop(name) for name in ("name", "model", "cluster")}
    for name in RESTRICTABLE:
        values = DIMENSIONS[name].values
        several = types.GenericAlias(tuple, (FIELD_TYPES[name], ...))
        first[name] = several if values is not None else several | None
        setattr(space, name, values)
    space.__annotations__ = {**first, **own}
    return space


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
@_with_dimensions
class SearchSpace:
    """What a search is about.

    Beside the fields below it has one for each dimension of a layout, by the dimension's name: a
    tuple of the values that it may take, by default those of `autotune.layout.DIMENSIONS`. For
    data_parallel None, the default, is whatever tensor and pipeline parallelism leave.
    """

    name: Name
    """Short name, for people; its run directory is named so."""
    model: Model
    """What is trained."""
    cluster: Cluster
    """On what."""
    max_trials: PositiveInt = 32
    """Exploring trials, unless the command line says otherwise."""
    warmup_steps: Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)] = 2
    """Steps of a trial that are not measured."""
    measured_steps: PositiveInt = 5
    """Steps of a trial that are measured."""

    if TYPE_CHECKING:  # the dimensions' fields are made from their declarations

        def __init__(
            self,
            *,
            name: str,
            model: Model,
            cluster: Cluster,
            max_trials: int = 32,
            warmup_steps: int = 2,
            measured_steps: int = 5,
            **values: tuple[Any, ...] | None,
        ) -> None: ...

        def __getattr__(self, dimension: str) -> Any: ...

    def __post_init__(self) -> None:
        for dimension in RESTRICTABLE:
            values = getattr(self, dimension)
            if values == ():
                raise ValueError(f"{dimension} must have at least one value, got none")
            if values is not None and len(set(values)) < len(values):
                raise ValueError(f"{dimension} must not repeat a value, got {values}")

    @property
    def precision(self) -> Precision:
        """The model's precision, or the device's usual one."""
        return self.model.precision or precision_on(self.cluster.device.kind)

    @property
    def task(self) -> Task:
        """What its layouts are for."""
        return Task(self.model, self.precision, self.cluster)

    def walk(self) -> Iterator[Layout | Excluded]:
        """Every legal layout, and every branch that is not entered, with its reason.

        Dimensions are chosen in the order of `LAYOUT_COLUMNS`; a branch is left at the first value
        that its rule forbids.
        """
        below = {}
        combinations = 1
        for dimension in reversed(LAYOUT_COLUMNS):
            below[dimension] = combinations
            if DIMENSIONS[dimension].is_searched:
                combinations *= len(getattr(self, dimension))
        yield from self._walk({}, self.task, below)

    def layouts(self) -> list[Layout]:
        """Every legal layout, each once."""
        return [found for found in self.walk() if isinstance(found, Layout)]

    def why_not(self, layout: Layout) -> str | None:
        """Why the layout is not in the space, or None where it is."""
        chosen: dict[str, Any] = {}
        for dimension in LAYOUT_COLUMNS:
            value = getattr(layout, dimension)
            chosen[dimension] = value
            if reason := self._forbidden(dimension, chosen, self.task):
                return reason
            if value not in (offered := self._values(dimension, chosen, self.task)):
                return f"{dimension} must be one of {', '.join(map(str, offered))}, got {value}"
        return None

    def check_not_empty(self) -> None:
        """Raise InputError where the space has no layout: the cause, and what would work."""
        cause: Excluded | None = None
        for found in self.walk():
            if not isinstance(found, Excluded):
                return
            # Where the walk got furthest, the rules of all earlier dimensions were kept.
            if cause is None or len(found.chosen) > len(cause.chosen):
                cause = found
        assert cause is not None, "every dimension has at least one value"
        alternatives = self._nearest_that_work(list(cause.chosen)[-1])
        advice = f" (what would work: {'; '.join(alternatives)})" if alternatives else ""
        raise InputError(f"no layout is left in {self.name}: {cause.reason}{advice}")

    def _nearest_that_work(self, dimension: str) -> list[str]:
        """Values near the present ones, each of which alone leaves a layout; in words."""
        changes: list[tuple[str, int, Callable[[int], SearchSpace]]] = [
            ("nodes", self.cluster.nodes, self._with_nodes),
            ("global_batch_size", self.model.global_batch_size, self._with_batch),
        ]
        values = getattr(self, dimension, None)
        if dimension in SEARCHED and values and all(type(value) is int for value in values):
            changes.insert(0, (dimension, values[-1], self._with_value(dimension)))
        return [
            f"{name} {' or '.join(map(str, nearest))}"
            for name, present, changed in changes
            if (nearest := _nearest(present, changed))
        ]

    def _with_value(self, dimension: str) -> Callable[[int], "SearchSpace"]:
        return lambda value: self.replaced({dimension: (value,)}, what=None)

    def _with_nodes(self, nodes: int) -> "SearchSpace":
        return dataclasses.replace(self, cluster=dataclasses.replace(self.cluster, nodes=nodes))

    def _with_batch(self, size: int) -> "SearchSpace":
        return dataclasses.replace(
            self, model=dataclasses.replace(self.model, global_batch_size=size)
        )

    def _has_layouts(self) -> bool:
        return any(isinstance(found, Layout) for found in self.walk())

    def restricted(self, fixed: Mapping[str, Sequence[Any]]) -> "SearchSpace":
        """The space with other values for some dimensions. Raises InputError."""
        for dimension in fixed:
            if dimension in NOT_OFFERED:
                raise InputError(f"{NOT_OFFERED[dimension]} ({dimension}) is not offered yet")
            if dimension not in RESTRICTABLE:
                known = ", ".join(RESTRICTABLE)
                raise InputError(f"dimension must be one of {known}, got {dimension!r}")
        values = {dimension: tuple(values) for dimension, values in fixed.items()}
        return self.replaced(values, what=None)

    def replaced(self, fields: Mapping[str, Any], *, what: str | None) -> "SearchSpace":
        """The space with other fields, validated again. Raises InputError."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return validated(SearchSpace, {**own, **fields}, what=what)

    def _walk(
        self, chosen: dict[str, Any], task: Task, below: Mapping[str, int]
    ) -> Iterator[Layout | Excluded]:
        if len(chosen) == len(LAYOUT_COLUMNS):
            yield Layout(**chosen)
            return
        dimension = LAYOUT_COLUMNS[len(chosen)]
        for value in self._values(dimension, chosen, task):
            branch = {**chosen, dimension: value}
            if reason := self._forbidden(dimension, branch, task):
                yield Excluded(chosen=branch, reason=reason, combinations=below[dimension])
            else:
                yield from self._walk(branch, task, below)

    def _values(self, dimension: str, chosen: Chosen, task: Task) -> Sequence[Any]:
        if follows := DIMENSIONS[dimension].follows:
            return (follows(chosen, task),)
        values: Sequence[Any] = getattr(self, dimension)
        return values

    def _forbidden(self, dimension: str, chosen: Chosen, task: Task) -> str | None:
        """The reason against `chosen[dimension]`: that of the space, or of the dimension's rule."""
        value, declared = chosen[dimension], DIMENSIONS[dimension]
        offered: Any = getattr(self, dimension) if declared.can_be_restricted else None
        if declared.follows and offered is not None and value not in offered:
            return f"{dimension} must be one of {', '.join(map(str, offered))}, got {value}"
        alias = declared.alias and declared.alias(chosen)
        if alias and alias.value != value and alias.value in offered:
            return f"{alias.reason}, got {value}"
        return declared.rule(chosen, task) if declared.rule else None


def not_generated(space: SearchSpace) -> dict[str, int]:
    """How many combinations of the dimensions' values are no layouts, by rule, most first."""
    counts: collections.Counter[str] = collections.Counter()
    for found in space.walk():
        if isinstance(found, Excluded):
            counts[found.rule] += found.combinations
    return dict(counts.most_common())


def _nearest(present: int, changed: Callable[[int], SearchSpace]) -> list[int]:
    """The next smaller and the next larger value with which there are layouts."""
    found = []
    for step in (-1, 1):
        for value in range(present + step, present + step * (_FARTHEST_ADVICE + 1), step):
            if value < 1:
                break
            try:
                if changed(value)._has_layouts():
                    found.append(value)
                    break
            except ValueError:
                continue  # not a value that the dimension takes
    return found


def precision_on(kind: str) -> Precision:
    """What a device kind trains in unless the model says otherwise."""
    return "bf16" if kind == "gpu" else "fp32"


def available_spaces() -> list[str]:
    """Names of the spaces that ship with the project."""
    package = importlib.import_module("search_spaces")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load_space(name_or_file: str) -> SearchSpace:
    """A space by name, or by the path of a Python file with a function `space()`.

    The file is executed: treat it as the code it is. Raises InputError.
    """
    with in_field("space"):
        return _load_space(name_or_file)


def _load_space(name_or_file: str) -> SearchSpace:
    if name_or_file.endswith(".py"):
        if not os.path.isfile(name_or_file):
            raise InputError(f"no such file: {name_or_file!r}")
        # Unlike an import, this leaves no compiled file beside it.
        make = _of_user(lambda: runpy.run_path(name_or_file), name_or_file).get("space")
    else:
        names = available_spaces()
        if name_or_file not in names:
            raise InputError(
                f"must be one of {', '.join(names)} or a file FILE.py, got {name_or_file!r}"
            )
        make = importlib.import_module(f"search_spaces.{name_or_file}").space
    if not callable(make):
        raise InputError(f"{name_or_file} must define a function space(), got {make!r}")
    found = _of_user(make, name_or_file)
    if not isinstance(found, SearchSpace):
        raise InputError(
            f"{name_or_file}: space() must return a SearchSpace, got {type(found).__name__}"
        )
    return found


def _of_user(code: Callable[[], Any], what: str) -> Any:
    """The result of code that a user wrote; whatever it raises becomes an InputError."""
    try:
        return code()
    except AutotuneError as error:
        raise InputError(f"{what}: {error}") from None
    except pydantic.ValidationError as error:
        raise InputError(f"{what}: {error.title}: {first_problem(error)}") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"{what}: {type(error).__name__}: {error}") from error
