"""A search space: a model, a cluster, and the values that each dimension of a layout may take."""

import collections
import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.cluster import Cluster
from autotune.dimension import Chosen, Task
from autotune.errors import InputError, shortened
from autotune.inputs import LARGEST_COUNT, Flag, Name, PositiveInt, shown, validated
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

# Alternatives to a value that leaves no layout are searched up to this far from it.
_LARGEST_CHANGE = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A branch of the search space that a rule excludes."""

    chosen: Mapping[str, Any]
    """The dimensions chosen so far, the illegal one last."""
    reason: str
    """The rule that is broken, and the values."""
    combinations: int
    """Combinations of the searched dimensions' values in the branch."""

    @property
    def rule(self) -> str:
        """The reason without the values."""
        return self.reason.rpartition(", got ")[0] or self.reason


def _with_dimensions(space: type[S]) -> type[S]:
    """Add a field for each dimension after `cluster`: the tuple of its allowed values."""
    rest = dict(space.__annotations__)
    annotations = {name: rest.pop(name) for name in ("name", "model", "cluster")}
    for name in RESTRICTABLE:
        values = DIMENSIONS[name].values
        tuple_type = types.GenericAlias(tuple, (FIELD_TYPES[name], ...))
        annotations[name] = tuple_type if values is not None else tuple_type | None
        setattr(space, name, values)
    space.__annotations__ = {**annotations, **rest}
    return space


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
@_with_dimensions
class SearchSpace:
    """A model, a cluster, and the allowed values of each dimension.

    Besides the fields below there is a field for each dimension of a layout, with the dimension's
    name: a tuple of allowed values, by default those of `autotune.layout.DIMENSIONS`. The default
    of data_parallel is None: the devices that tensor and pipeline parallelism leave.
    """

    name: Name
    """Short name of the space; the default name of its run directory."""
    model: Model
    """The model to train, and its batch."""
    cluster: Cluster
    """The cluster to train on."""
    max_trials: PositiveInt = 32
    """Default limit of exploring trials; the command line can change it."""
    warmup_steps: Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)] = 2
    """Warm-up steps of a trial; they are not measured."""
    measured_steps: PositiveInt = 5
    """Measured steps of a trial, after the warm-up."""
    deepspeed_engine: Flag = True
    """Whether ZeRO stages are limited to what DeepSpeed's engines can combine."""

    if TYPE_CHECKING:  # `_with_dimensions` adds the fields of the dimensions

        def __init__(
            self,
            *,
            name: str,
            model: Model,
            cluster: Cluster,
            max_trials: int = 32,
            warmup_steps: int = 2,
            measured_steps: int = 5,
            deepspeed_engine: bool = True,
            **values: tuple[Any, ...] | None,
        ) -> None: ...

        def __getattr__(self, dimension: str) -> Any: ...

    def __post_init__(self) -> None:
        for dimension in RESTRICTABLE:
            values = getattr(self, dimension)
            if values == ():
                raise ValueError(f"{dimension} must have at least one value, got none")
            if values is not None and len(set(values)) < len(values):
                raise ValueError(f"{dimension} must not repeat a value, got {shown(values)}")

    @property
    def precision(self) -> Precision:
        """The model's precision, or the default of the device."""
        return self.model.precision or precision_on(self.cluster.device.kind)

    @property
    def task(self) -> Task:
        """Model, precision and cluster, as the rules take them."""
        return Task(self.model, self.precision, self.cluster, self.deepspeed_engine)

    def walk(self) -> Iterator[Layout | Excluded]:
        """Enumerate the space: every legal layout, and every excluded branch with its reason.

        Dimensions are assigned in the order of `LAYOUT_COLUMNS`; a branch is cut at the first value
        that a rule forbids.
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
        return [candidate for candidate in self.walk() if isinstance(candidate, Layout)]

    def why_not(self, layout: Layout) -> str | None:
        """Why the layout is not in the space, or None where it is."""
        chosen: dict[str, Any] = {}
        for dimension in LAYOUT_COLUMNS:
            value = getattr(layout, dimension)
            chosen[dimension] = value
            if reason := self._why_forbidden(dimension, chosen, self.task):
                return reason
            if value not in (offered := self._values(dimension, chosen, self.task)):
                return f"{dimension} must be one of {_listed(offered)}, got {value}"
        return None

    def changed(self, layout: Layout, **values: Any) -> "Layout | Excluded":
        """The layout with other values of some dimensions, in the space or beside it.

        Derived dimensions follow. A dimension that is not given keeps its value if a rule allows
        it, else it takes the nearest value of the space that is allowed. Excluded, with the reason,
        where a rule forbids a given value.
        """
        chosen: dict[str, Any] = {}
        for dimension, declared in DIMENSIONS.items():
            own = getattr(layout, dimension)
            if declared.follows and dimension not in values:
                own = declared.follows(chosen, self.task)
            candidates = [values.get(dimension, own)]
            if dimension not in values and declared.can_be_restricted and not declared.follows:
                candidates += sorted(
                    getattr(self, dimension),
                    key=lambda value: abs(value - own) if isinstance(value, int) else 0,
                )
            reasons = []
            for value in candidates:
                branch = {**chosen, dimension: value}
                reason = declared.rule(branch, self.task) if declared.rule else None
                alias = declared.alias and declared.alias(branch)
                if reason is None and alias and alias.value != value:
                    reason = f"{alias.reason}, got {value}"
                if reason is None:
                    break
                reasons.append(reason)
            else:
                branch = {**chosen, dimension: candidates[0]}
                return Excluded(chosen=branch, reason=reasons[0], combinations=1)
            chosen = branch
        return Layout(**chosen)

    def check_not_empty(self) -> None:
        """Raise InputError where the space has no layout; the message names alternatives."""
        cause: Excluded | None = None
        for candidate in self.walk():
            if not isinstance(candidate, Excluded):
                return
            # Report the deepest excluded branch: it satisfies the rules of all earlier dimensions.
            if cause is None or len(candidate.chosen) > len(cause.chosen):
                cause = candidate
        assert cause is not None, "every dimension has at least one value"
        alternatives = self._alternatives(list(cause.chosen)[-1])
        advice = f" (what would work: {'; '.join(alternatives)})" if alternatives else ""
        raise InputError(f"no layout is left in {self.name}: {cause.reason}{advice}")

    def _alternatives(self, dimension: str) -> list[str]:
        """Changes of a single value after which the space has a layout, as phrases."""
        changes: list[tuple[str, int, Callable[[int], SearchSpace]]] = [
            ("nodes", self.cluster.nodes, self._with_nodes),
            ("global_batch_size", self.model.global_batch_size, self._with_batch),
        ]
        values = getattr(self, dimension, None)
        if dimension in SEARCHED and values and all(type(value) is int for value in values):
            changes.insert(0, (dimension, values[-1], self._with_value(dimension)))
        return [
            f"{name} {' or '.join(map(str, nearest))}"
            for name, current, changed in changes
            if (nearest := _nearest(current, changed))
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
        return any(isinstance(candidate, Layout) for candidate in self.walk())

    def restricted(self, fixed: Mapping[str, Sequence[Any]]) -> "SearchSpace":
        """The space with other values for some dimensions. Raises InputError."""
        for dimension in fixed:
            if dimension in NOT_OFFERED:
                raise InputError(f"{NOT_OFFERED[dimension]} ({dimension}) is not offered yet")
            if dimension not in RESTRICTABLE:
                known = ", ".join(RESTRICTABLE)
                raise InputError(f"dimension must be one of {known}, got {shown(dimension)}")
        values = {dimension: tuple(values) for dimension, values in fixed.items()}
        return self.replaced(values, what=None)

    def replaced(self, fields: Mapping[str, Any], *, what: str | None) -> "SearchSpace":
        """The space with other fields, validated again. Raises InputError."""
        old = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return validated(SearchSpace, {**old, **fields}, what=what)

    def _walk(
        self, chosen: dict[str, Any], task: Task, below: Mapping[str, int]
    ) -> Iterator[Layout | Excluded]:
        if len(chosen) == len(LAYOUT_COLUMNS):
            yield Layout(**chosen)
            return
        dimension = LAYOUT_COLUMNS[len(chosen)]
        for value in self._values(dimension, chosen, task):
            branch = {**chosen, dimension: value}
            if reason := self._why_forbidden(dimension, branch, task):
                yield Excluded(chosen=branch, reason=reason, combinations=below[dimension])
            else:
                yield from self._walk(branch, task, below)

    def _values(self, dimension: str, chosen: Chosen, task: Task) -> Sequence[Any]:
        if follows := DIMENSIONS[dimension].follows:
            return (follows(chosen, task),)
        values: Sequence[Any] = getattr(self, dimension)
        return values

    def _why_forbidden(self, dimension: str, chosen: Chosen, task: Task) -> str | None:
        """Why `chosen[dimension]` is illegal, by the space or by the dimension's rule, or None."""
        value, declared = chosen[dimension], DIMENSIONS[dimension]
        offered: Any = getattr(self, dimension) if declared.can_be_restricted else None
        if declared.follows and offered is not None and value not in offered:
            return f"{dimension} must be one of {_listed(offered)}, got {value}"
        alias = declared.alias and declared.alias(chosen)
        if alias and alias.value != value and alias.value in offered:
            return f"{alias.reason}, got {value}"
        return declared.rule(chosen, task) if declared.rule else None


def _listed(values: Sequence[Any]) -> str:
    return shortened(", ".join(map(str, values)))


def not_generated(space: SearchSpace) -> dict[str, int]:
    """Number of excluded combinations of the dimensions' values by rule, largest first."""
    counts: collections.Counter[str] = collections.Counter()
    for candidate in space.walk():
        if isinstance(candidate, Excluded):
            counts[candidate.rule] += candidate.combinations
    return dict(counts.most_common())


def _nearest(current: int, changed: Callable[[int], SearchSpace]) -> list[int]:
    """The next smaller and the next larger value with which the space has a layout."""
    nearest = []
    for step in (-1, 1):
        for value in range(current + step, current + step * (_LARGEST_CHANGE + 1), step):
            if value < 1:
                break
            try:
                if changed(value)._has_layouts():
                    nearest.append(value)
                    break
            except ValueError:
                continue  # the value is invalid for the dimension
    return nearest


def precision_on(kind: str) -> Precision:
    """Default precision on a kind of device: "gpu" or "cpu"."""
    return "bf16" if kind == "gpu" else "fp32"
