"""How a training command is started for a layout, and how its figures are read: a TOML file."""

import dataclasses
import json
import re
import runpy
import string
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.errors import InputError, first_line
from autotune.inputs import (
    LARGEST_COUNT,
    Flag,
    PositiveFloat,
    PositiveInt,
    listed,
    read_text,
    shown,
    validated,
)
from autotune.layout import FIELD_TYPES, LAYOUT_COLUMNS, SEARCHED, Layout
from autotune.trial.trial import TrialSpec
from autotune.user_code import run_user_code

FigureName = Literal[
    "step_seconds",
    "tokens_per_second",
    "tokens_per_second_per_device",
    "loss",
    "grad_norm",
    "peak_memory_gib",
]
"""What can be read of a step."""
SPEEDS = ("step_seconds", "tokens_per_second", "tokens_per_second_per_device")
"""The figures that say how long a step took. One of them ends the step."""

OF_TRIAL = (
    "trial_id",
    "steps",
    "precision",
    "seed",
    "world_size",
    "nodes",
    "devices_per_node",
    "global_batch_size",
    "replica_batch_size",
    "sequence_length",
    "log_directory",
)
"""Placeholders with the same value in all processes of a trial."""
OF_PROCESS = (
    "rank",
    "local_rank",
    "node_rank",
    "master_addr",
    "master_port",
    "scratch_directory",
)
"""Placeholders with a value of their own in each process."""
PLACEHOLDERS = (*LAYOUT_COLUMNS, *OF_TRIAL, *OF_PROCESS)
"""Words that may stand in braces in arguments and environment variables."""

_OUT_OF_MEMORY = (
    r"OutOfMemoryError",
    r"CUDA out of memory",
    r"CUDA error: out of memory",
    r"HIP out of memory",
    r"DefaultCPUAllocator: (can't allocate memory|not enough memory)",
    r"^MemoryError",
)

ANY_OTHER = "*"
"""In `Recipe.values`: every value that is not listed."""

Word = Annotated[str, Field(strict=True)]
Words = tuple[Word, ...]


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Figure:
    """A figure that is read from lines of the log."""

    pattern: Word
    """Regular expression (Python's `re.search`) whose first group is the number."""
    scale: PositiveFloat = 1.0
    """What the number is multiplied by: 0.001 where the log has milliseconds."""

    def __post_init__(self) -> None:
        if _expression(self.pattern, "pattern").groups < 1:
            raise ValueError(
                f"pattern must have a group around the number, got {shown(self.pattern)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class OutOfMemory:
    """How a process that ran out of memory can be told from one that crashed."""

    patterns: Words = _OUT_OF_MEMORY
    """Regular expressions; one of them matches a line near the end of the log."""
    exit_statuses: tuple[PositiveInt, ...] = ()
    """Exit statuses of the command."""

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            _expression(pattern, "patterns")


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Recipe:
    """A training command. Arguments and variables have placeholders such as {tensor_parallel}."""

    argv: Annotated[Words, Field(min_length=1)]
    """The program and its arguments; no shell is involved."""
    processes: Literal["node", "rank"] = "node"
    """Whether the command is started once on each node (it starts the ranks, as torchrun does) or
    once for each rank."""
    directory: str | None = None
    """Working directory, relative to the file; None: the folder of the file."""
    env: Mapping[str, Word] = dataclasses.field(default_factory=dict)
    """Environment variables."""
    values: Mapping[str, Mapping[str, Word | Words]] = dataclasses.field(default_factory=dict)
    """What a placeholder becomes, by value: a text, or a list of arguments where the placeholder is
    an argument of its own; both may have placeholders, which stand for the values themselves.
    "*" is every other value. Values that are not listed are written as they are."""
    dimensions: Mapping[str, tuple[int | str | bool, ...]] = dataclasses.field(default_factory=dict)
    """By dimension of the layout, the values that the command knows. One that is not listed can
    have any value if it is a placeholder, and is fixed if it is not."""
    figures: Mapping[FigureName, Figure] = dataclasses.field(default_factory=dict)
    """How figures are read from the log. Where neither they nor a `reader` are given, the command
    reports steps itself: by `autotune.report.step`, or as JSON lines into the file that
    AUTOTUNE_STEPS names."""
    reader: str | None = None
    """FILE.py:FUNCTION, relative to the directory: called with each line of the log, it returns the
    figures of a step as a dictionary where the line ends one, else None."""
    reporters: Literal["one", "all"] = "one"
    """Whether one process reports each step, whichever it is, or every process does."""
    out_of_memory: OutOfMemory = dataclasses.field(default_factory=OutOfMemory)
    """How running out of memory looks."""
    comparable_losses: Flag = False
    """Whether the command trains the same model on the same data in every layout, so that a layout
    with another loss is wrong."""
    stop_seconds: Annotated[float, Field(ge=0, le=30)] = 5.0
    """Time between SIGTERM and SIGKILL where a trial is ended."""
    warmup_steps: Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)] | None = None
    """Steps at the start that are not measured; None: those of the space."""
    measured_steps: PositiveInt | None = None
    """Measured steps after them; None: those of the space."""
    trial_timeout_seconds: PositiveFloat | None = None
    """A trial that takes longer ends as a timeout; None: that of the search."""
    trainer: str = "deepspeed_llm"
    """The trainer whose constants the predictions begin with (`autotune.cost.trainers`)."""

    def __post_init__(self) -> None:
        for name, mapping in self.values.items():
            _check_placeholder(name, "values")
            for mapped in mapping.values():
                for word in [mapped] if isinstance(mapped, str) else mapped:
                    for inner in _placeholders(word, f"values.{name}"):
                        _check_placeholder(inner, f"values.{name}")
        for name, known in self.dimensions.items():
            if name not in self.varied:
                raise ValueError(
                    f"dimensions must be placeholders of the command ({listed(self.varied)}), "
                    f"got {shown(name)}"
                )
            for value in known:
                _check_value(name, value)
        for word in self.argv:
            self._check_word(word, "argv", may_be_list=True)
        for name, word in self.env.items():
            self._check_word(word, f"env.{name}", may_be_list=False)
        if self.figures and not set(self.figures) & set(SPEEDS):
            raise ValueError(
                f"figures must have one of {', '.join(SPEEDS)}, got {', '.join(self.figures)}"
            )
        if self.reader is not None:
            if self.figures:
                raise ValueError("figures and reader exclude each other, got both")
            file, _, function = self.reader.rpartition(":")
            if not (file.endswith(".py") and function.isidentifier()):
                raise ValueError(f"reader must be FILE.py:FUNCTION, got {shown(self.reader)}")

    def _check_word(self, word: str, where: str, *, may_be_list: bool) -> None:
        for name in _placeholders(word, where):
            _check_placeholder(name, where)
            mapped = self.values.get(name, {}).values()
            is_list = not all(isinstance(text, str) for text in mapped)
            if is_list and not (may_be_list and word == f"{{{name}}}"):
                raise ValueError(
                    f"{where} must have {{{name}}} as an argument of its own, because "
                    f"values.{name} has a list, got {shown(word)}"
                )

    @property
    def varied(self) -> tuple[str, ...]:
        """The dimensions that the command is told of; the others are fixed."""
        used = {
            name
            for word in (*self.argv, *self.env.values())
            for name in _placeholders(word, "argv")
        }
        # A mapped value may mention further ones: those of a dimension that varies count.
        for name in tuple(used):
            for mapped in self.values.get(name, {}).values():
                for word in [mapped] if isinstance(mapped, str) else mapped:
                    used.update(_placeholders(word, "values"))
        return tuple(name for name in SEARCHED if name in used)

    def arguments(self, values: Mapping[str, Any]) -> list[str]:
        """The command's arguments; `values` are those of all PLACEHOLDERS."""
        written: list[str] = []
        for word in self.argv:
            mapped = self._mapped(word[1:-1], values) if word[1:-1] in self.values else None
            if mapped is None or isinstance(mapped, str):
                written.append(self._written(word, values))
            else:
                written.extend(mapped)
        return written

    def environment(self, values: Mapping[str, Any]) -> dict[str, str]:
        """The command's environment variables."""
        return {name: self._written(word, values) for name, word in self.env.items()}

    def _written(self, word: str, values: Mapping[str, Any]) -> str:
        return word.format_map({name: self._mapped(name, values) for name in PLACEHOLDERS})

    def _mapped(self, name: str, values: Mapping[str, Any]) -> str | list[str]:
        own = _text(values[name])
        mapping = self.values.get(name, {})
        mapped = mapping.get(own, mapping.get(ANY_OTHER))
        if mapped is None:
            return own
        texts = {other: _text(value) for other, value in values.items()}
        if isinstance(mapped, str):
            return mapped.format_map(texts)
        return [word.format_map(texts) for word in mapped]


def placeholder_values(spec: TrialSpec, process: Mapping[str, Any]) -> dict[str, Any]:
    """The values of PLACEHOLDERS; `process` has those of OF_PROCESS."""
    layout: Layout = spec.layout
    nodes = -(-layout.world_size // spec.cluster.gpus_per_node)
    return {
        **{column: getattr(layout, column) for column in LAYOUT_COLUMNS},
        "trial_id": spec.trial_id,
        "steps": spec.steps,
        "precision": spec.precision,
        "seed": spec.seed,
        "world_size": layout.world_size,
        "nodes": nodes,
        "devices_per_node": layout.world_size // nodes,
        "global_batch_size": spec.model.global_batch_size,
        "replica_batch_size": spec.model.global_batch_size // layout.data_parallel,
        "sequence_length": spec.model.sequence_length,
        "log_directory": spec.log_dir,
        **process,
    }


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file, or what the function `command()` of a Python file returns, such
    as that of a space; checked, the directory made absolute. Raises InputError."""
    path = Path(path)
    text = read_text(path, what="command")
    if path.suffix == ".py":
        values = run_user_code(lambda: _command_of(path), what=f"command {shown(path)}")
    else:
        try:
            values = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise InputError(f"command: not valid TOML: {first_line(error)}") from None
    recipe = recipe_of(values)
    directory = (path.resolve().parent / (recipe.directory or ".")).resolve()
    if not directory.is_dir():
        raise InputError(f"command: directory must be a folder, got {shown(str(directory))}")
    return {**values, "directory": str(directory)}


def _command_of(path: Path) -> dict[str, Any]:
    make = runpy.run_path(str(path)).get("command")
    if not callable(make):
        raise InputError(f"must define a function command(), got {shown(make)}")
    # Only what JSON can say is stored with the run: tuples become lists.
    made: object = json.loads(json.dumps(make()))
    if not isinstance(made, dict):
        raise InputError(f"command() must return a dictionary, got {shown(made)}")
    return made


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """The recipe of such values. Raises InputError."""
    return validated(Recipe, values, what="command")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _placeholders(word: str, where: str) -> list[str]:
    try:
        parsed = list(string.Formatter().parse(word))
    except ValueError as error:
        raise ValueError(f"{where} must have paired braces ({error}), got {shown(word)}") from None
    names = []
    for _, name, form, conversion in parsed:
        if form or conversion:
            raise ValueError(f"{where} must have plain placeholders, got {shown(word)}")
        if name is not None:
            names.append(name)
    return names


def _check_placeholder(name: str, where: str) -> None:
    if name not in PLACEHOLDERS:
        raise ValueError(
            f"{where} must have placeholders among {listed(PLACEHOLDERS)}, got {shown(name)}"
        )


def _check_value(name: str, value: int | str | bool) -> None:
    try:
        pydantic.TypeAdapter(FIELD_TYPES[name]).validate_python(value)
    except pydantic.ValidationError:
        raise ValueError(
            f"dimensions.{name} must have values that a layout can have, got {shown(value)}"
        ) from None


def _expression(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError) as error:
        raise ValueError(
            f"{where} must be a regular expression ({error}), got {shown(pattern)}"
        ) from None
