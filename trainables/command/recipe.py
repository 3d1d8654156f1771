"""How a training command is started for a layout, and how its figures are read: a TOML file."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.cost.trainers import StatedTrainer, Trainer, trainer_of
from autotune.errors import InputError
from autotune.inputs import (
    LARGEST_COUNT,
    Flag,
    PositiveFloat,
    PositiveInt,
    listed,
    shown,
    validated,
)
from autotune.layout import FIELD_TYPES, SEARCHED
from trainables.command.placeholders import (
    IN_TEXT,
    PLACEHOLDERS,
    check_placeholder,
    placeholders_in,
)

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
FileName = Annotated[str, Field(strict=True, pattern=r"^[\w-][\w.-]*$")]
Words = tuple[Word, ...]


def _name_or_content(stated: Any) -> Any:
    if not isinstance(stated, (str, Mapping)):
        raise ValueError(f"trainer must be a name or FILE.json, got {shown(stated)}")
    return stated


NameOrContent = Annotated[str | Mapping[str, Any], pydantic.BeforeValidator(_name_or_content)]
"""A trainer's name, or what its file holds."""


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
    files: Mapping[FileName, Word] = dataclasses.field(default_factory=dict)
    """Texts of files that each process finds in its scratch directory, by name. Only placeholders
    are replaced in them; other braces stay as they are."""
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
    trainer: NameOrContent = "deepspeed_llm"
    """The trainer whose constants the predictions begin with (`autotune.cost.trainers`): its name,
    or FILE.json relative to this file; as stored, the content of that file."""

    def __post_init__(self) -> None:
        for text in self.files.values():
            for name in IN_TEXT.findall(text):
                if any(
                    not isinstance(mapped, str) for mapped in self.values.get(name, {}).values()
                ):
                    raise ValueError(
                        f"files must have no {{{name}}}, because values.{name} has a list"
                    )
        for name, mapping in self.values.items():
            check_placeholder(name, "values")
            for mapped in mapping.values():
                for word in [mapped] if isinstance(mapped, str) else mapped:
                    for inner in placeholders_in(word, f"values.{name}"):
                        check_placeholder(inner, f"values.{name}")
        for name, known in self.dimensions.items():
            if name not in self.varied:
                raise ValueError(
                    f"dimensions must be placeholders of the command "
                    f"({listed(self.varied or ('none',))}), "
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
        for name in placeholders_in(word, where):
            check_placeholder(name, where)
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
            for name in placeholders_in(word, "argv")
        }
        used.update(name for text in self.files.values() for name in IN_TEXT.findall(text))
        # A mapped value may mention further ones: those of a dimension that varies count.
        for name in tuple(used):
            for mapped in self.values.get(name, {}).values():
                for word in [mapped] if isinstance(mapped, str) else mapped:
                    used.update(placeholders_in(word, "values"))
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

    def texts(self, values: Mapping[str, Any]) -> dict[str, str]:
        """The texts of the command's files by name."""
        return {
            name: IN_TEXT.sub(lambda found: str(self._mapped(found[1], values)), text)
            for name, text in self.files.items()
        }

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


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """The recipe of such values. Raises InputError."""
    return validated(Recipe, values, what="command")


def checked_trainer(stated: StatedTrainer) -> Trainer:
    """The trainer of a name, a file or a file's content. Raises InputError."""
    try:
        return trainer_of(stated)
    except InputError as error:
        raise InputError(f"command: {error}") from None


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
