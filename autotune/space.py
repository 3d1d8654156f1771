"""A search space: a model, a cluster, and the values that each dimension of a layout may take."""

import dataclasses
import importlib
import os
import pkgutil
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.cluster import Cluster
from autotune.errors import AutotuneError, InputError, in_field
from autotune.hardware import AttentionKernel
from autotune.inputs import LARGEST_COUNT, Flag, Name, PositiveInt, first_problem, validated
from autotune.layout import (
    LAYOUT_COLUMNS,
    NOT_OFFERED,
    Checkpointing,
    Layout,
    RmsnormKernel,
)
from autotune.model import Model, Precision
from autotune.rules import illegal

# Follow from the other dimensions: they are not searched, though data_parallel can be restricted.
_DERIVED = ("data_parallel", "gradient_accumulation_steps")
SEARCHED = tuple(name for name in LAYOUT_COLUMNS if name not in _DERIVED)
"""Names of the dimensions that a search chooses."""

# With one replica there is nothing to shard, so all stages are the same layout; this is its name.
_STAGE_OF_ONE_REPLICA = 1
# How far from a value that leaves no layout others are tried.
_FARTHEST_ADVICE = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A branch of the space that is not generated."""

    chosen: Mapping[str, Any]
    """The dimensions chosen so far, the offending one last."""
    reason: str
    """The rule and the values."""


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class SearchSpace:
    """What a search is about."""

    name: Name
    """Short name, for people; its run directory is named so."""
    model: Model
    """What is trained."""
    cluster: Cluster
    """On what."""
    tensor_parallel: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    pipeline_parallel: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    data_parallel: tuple[PositiveInt, ...] | None = None
    """None: whatever tensor and pipeline parallelism leave of the cluster."""
    zero_stage: tuple[Annotated[int, Field(strict=True, ge=0, le=3)], ...] = (1, 2, 3)
    micro_batch_size: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    activation_checkpointing: tuple[Checkpointing, ...] = ("none", "selective", "full")
    sequence_parallel: tuple[Flag, ...] = (False, True)
    attention_kernel: tuple[AttentionKernel, ...] = (
        "math",
        "sdpa_flash",
        "sdpa_cudnn",
        "flash_attn",
    )
    rmsnorm_kernel: tuple[RmsnormKernel, ...] = ("plain", "fused")
    torch_compile: tuple[Flag, ...] = (False,)
    max_trials: PositiveInt = 32
    """Exploring trials, unless the command line says otherwise."""
    warmup_steps: Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)] = 2
    """Steps of a trial that are not measured."""
    measured_steps: PositiveInt = 5
    """Steps of a trial that are measured."""

    def __post_init__(self) -> None:
        for dimension in (*SEARCHED, "data_parallel"):
            values = getattr(self, dimension)
            if values == ():
                raise ValueError(f"{dimension} must have at least one value, got none")
            if values is not None and len(set(values)) < len(values):
                raise ValueError(f"{dimension} must not repeat a value, got {values}")

    @property
    def precision(self) -> Precision:
        """The model's precision, or the device's usual one."""
        return self.model.precision or precision_on(self.cluster.device.kind)

    def walk(self) -> Iterator[Layout | Excluded]:
        """Every legal layout, and every branch that is not entered, with its reason.

        Dimensions are chosen in the order of `LAYOUT_COLUMNS`; a branch is left at the first value
        that its rule forbids.
        """
        yield from self._walk({})

    def layouts(self) -> list[Layout]:
        """Every legal layout, each once."""
        return [found for found in self.walk() if isinstance(found, Layout)]

    def why_not(self, layout: Layout) -> str | None:
        """Why the layout is not in the space, or None where it is."""
        chosen: dict[str, Any] = {}
        for dimension in LAYOUT_COLUMNS:
            value = getattr(layout, dimension)
            chosen[dimension] = value
            if reason := self._forbidden(dimension, chosen):
                return reason
            if value not in (offered := self._values(dimension, chosen)):
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
        raise InputError(f"no layout of {self.name} is left: {cause.reason}{advice}")

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
            if dimension not in (*SEARCHED, "data_parallel"):
                known = ", ".join((*SEARCHED, "data_parallel"))
                raise InputError(f"dimension must be one of {known}, got {dimension!r}")
        values = {dimension: tuple(values) for dimension, values in fixed.items()}
        return self.replaced(values, what=None)

    def replaced(self, fields: Mapping[str, Any], *, what: str | None) -> "SearchSpace":
        """The space with other fields, validated again. Raises InputError."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return validated(SearchSpace, {**own, **fields}, what=what)

    def _walk(self, chosen: dict[str, Any]) -> Iterator[Layout | Excluded]:
        if len(chosen) == len(LAYOUT_COLUMNS):
            yield Layout(**chosen)
            return
        dimension = LAYOUT_COLUMNS[len(chosen)]
        for value in self._values(dimension, chosen):
            branch = {**chosen, dimension: value}
            if reason := self._forbidden(dimension, branch):
                yield Excluded(chosen=branch, reason=reason)
            else:
                yield from self._walk(branch)

    def _values(self, dimension: str, chosen: Mapping[str, Any]) -> Sequence[Any]:
        if dimension == "data_parallel":
            return (self._remaining_devices(chosen),)
        if dimension == "gradient_accumulation_steps":
            sequences = chosen["data_parallel"] * chosen["micro_batch_size"]
            return (self.model.global_batch_size // sequences,)
        values: Sequence[Any] = getattr(self, dimension)
        return values

    def _remaining_devices(self, chosen: Mapping[str, Any]) -> int:
        ranks: int = chosen["tensor_parallel"] * chosen["pipeline_parallel"]
        return self.cluster.devices // ranks

    def _forbidden(self, dimension: str, chosen: Mapping[str, Any]) -> str | None:
        """The reason against `chosen[dimension]`: the space's own rules, then the model's."""
        value = chosen[dimension]
        match dimension:
            case "pipeline_parallel":
                ranks = chosen["tensor_parallel"] * value
                if self.cluster.devices % ranks:
                    return (
                        "tensor_parallel * pipeline_parallel must divide the devices of the "
                        f"cluster, got {chosen['tensor_parallel']} * {value} and "
                        f"{self.cluster.devices}"
                    )
            case "data_parallel" if self.data_parallel is not None:
                if value not in self.data_parallel:
                    allowed = ", ".join(map(str, self.data_parallel))
                    return f"data_parallel must be one of {allowed}, got {value}"
            case "zero_stage" if chosen["data_parallel"] == 1 and value != _STAGE_OF_ONE_REPLICA:
                if _STAGE_OF_ONE_REPLICA in self.zero_stage:
                    return (
                        "data_parallel 1 has nothing to shard: all ZeRO stages are one layout, "
                        f"named {_STAGE_OF_ONE_REPLICA}, got {value}"
                    )
            case "attention_kernel" if value not in self.cluster.device.attention_kernels:
                return (
                    f"attention_kernel {value} does not run on {self.cluster.device.name} (has "
                    f"{', '.join(self.cluster.device.attention_kernels)})"
                )
        return illegal(dimension, chosen, self.model, self.precision)


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
