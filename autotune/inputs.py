"""Validation of untrusted input: field types, dataclasses built from mappings, files, JSON."""

import collections
import contextlib
import dataclasses
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import pydantic
from pydantic import AfterValidator, Field
from pydantic_core import ErrorDetails

from autotune.errors import InputError, first_line, shortened

T = TypeVar("T")

LARGEST_TEXT = 16 * 2**20
"""Size limit in bytes of JSON files and of search spaces."""
LARGEST_TABLE = 2**30
"""Size limit in bytes of files of recorded runs."""
_MISSING = frozenset({"missing", "missing_argument", "missing_keyword_only_argument"})


def _field_of(problem: ErrorDetails) -> str:
    return shortened(".".join(part for part in problem["loc"] if isinstance(part, str)))


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, or ``a, b and c``."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def shown(value: object) -> str:
    """The value as error messages show it: shortened, on one line."""
    if isinstance(value, str):  # the quotes are not counted
        return repr(shortened(value))
    if isinstance(value, os.PathLike):
        return repr(shortened(str(value)))
    try:
        return shortened(repr(value))
    except ValueError:  # a whole number of more than 4,300 digits
        return "a number that is too long to be shown"
    except Exception:  # somebody else's class
        return f"an object of type {type(value).__name__}"


def _checked_name(name: str) -> str:
    if not 1 <= len(name) <= 100 or not name.isprintable() or "/" in name or name.startswith("."):
        raise ValueError(
            "name must be 1 to 100 printable characters without '/' and not begin with a dot, "
            f"got {shown(name)}"
        )
    return name


LARGEST_COUNT = 2**31 - 1
"""Upper bound of every count."""
PositiveInt = Annotated[int, Field(strict=True, ge=1, le=LARGEST_COUNT)]
"""A count of at least one."""
SMALLEST_AMOUNT, LARGEST_AMOUNT = 1e-9, 1e9
"""Bounds of every quantity, so that formulas cannot overflow."""
PositiveFloat = Annotated[float, Field(strict=True, ge=SMALLEST_AMOUNT, le=LARGEST_AMOUNT)]
"""A positive quantity within these bounds."""
Flag = Annotated[bool, Field(strict=True)]
"""A strict boolean: 0, 1 and strings are refused."""
Name = Annotated[str, Field(strict=True), AfterValidator(_checked_name)]
"""A short name. It is used in file names and in comments of scripts, hence the checks."""


def validated(
    kind: type[T], values: Mapping[str, Any], *, what: str | None, names_field: bool = False
) -> T:
    """Build the dataclass `kind` from untrusted `values`; `what` is the prefix of an error message.

    With `names_field` and without `what`, the error names its field.
    Raises InputError with the first problem as one sentence, for example
    ``model: hidden_size must be greater than or equal to 1, got 0``.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(dict(values))
    except pydantic.ValidationError as error:
        problem = first_problem(error)
        field, _, rule = problem.partition(" ")
        if what is None and names_field and rule.startswith("must "):
            raise InputError(rule, field=field) from None
        raise InputError(problem if what is None else f"{what}: {problem}") from None


def default_of(kind: type, field: str) -> Any:
    """The default of a dataclass's field."""
    default = next(f for f in dataclasses.fields(kind) if f.name == field).default
    # pydantic may wrap the default in a FieldInfo.
    return getattr(default, "default", default)


def first_problem(error: pydantic.ValidationError) -> str:
    """The first problem in one sentence: the field, the rule and the value.

    All missing fields are reported together.
    """
    problems = error.errors(include_url=False)
    problem = problems[0]
    field = _field_of(problem)
    match problem["type"]:
        case kind if kind in _MISSING:
            missing = [_field_of(p) for p in problems if p["type"] in _MISSING]
            return f"{listed(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"unknown key {field}"
        case "value_error":
            sentence = str(problem["ctx"]["error"])
            # A type that is shared by fields of several names knows only its own.
            name = field.rpartition(".")[2]
            return sentence if name in sentence else f"{field}: {sentence}"
    rule = problem["msg"].replace("Unable to parse input string as an", "must be a valid")
    rule = re.sub(r"^\w+ (should|must) ", "must ", rule)
    return f"{field} {rule}, got {shown(problem['input'])}"


@contextlib.contextmanager
def opened(path: str | Path, *, largest: int, what: str | None = None) -> Iterator[BinaryIO]:
    """Open a regular file of at most `largest` bytes for reading.

    What may block or never end (a FIFO, a socket, a device) is refused before it is opened. Raises
    InputError, also for an OSError inside; `what` is the prefix of its message.
    """
    problem = _cannot_read(path, what)
    try:
        _refuse_irregular(_status(path), problem, largest)
        # Non-blocking, for what has taken the file's place in the meantime.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            _refuse_irregular(os.fstat(file.fileno()), problem, largest)
            yield file
    except OSError as error:
        raise InputError(f"{problem}: {error.strerror or first_line(error)}") from None


def read_text(path: str | Path, *, what: str | None = None, largest: int = LARGEST_TEXT) -> str:
    """The text of a regular file of at most `largest` bytes, in UTF-8.

    Raises InputError; `what` is the prefix of its message.
    """
    problem = _cannot_read(path, what)
    with opened(path, largest=largest, what=what) as file:
        content = file.read(largest + 1)  # files of /proc do not tell their size
    if len(content) > largest:
        raise InputError(f"{problem}: must have at most {largest} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{problem}: {first_line(error)}") from None


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of_file(status: os.stat_result) -> str:
    """What a path leads to, for messages: "a file", "a folder", "a FIFO"."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a file")


def _cannot_read(path: str | Path, what: str | None) -> str:
    problem = f"cannot read {shown(path)}"
    return problem if what is None else f"{what}: {problem}"


def _status(path: str | Path) -> os.stat_result:
    try:
        return os.stat(path)
    except ValueError as error:  # a null character
        raise OSError(0, first_line(error)) from None


def _refuse_irregular(status: os.stat_result, problem: str, largest: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{problem}: must be a file, got {kind_of_file(status)}")
    if status.st_size > largest:
        raise InputError(f"{problem}: must have at most {largest} bytes, got {status.st_size}")


def read_json(text_or_path: str, *, what: str) -> dict[str, Any]:
    """Read a JSON object given inline or as the path of a file. Raises InputError."""
    text = text_or_path
    if not text_or_path.lstrip().startswith("{"):
        text = read_text(text_or_path, what=what)
    return json_object(text, what=what)


def json_object(text: str, *, what: str) -> dict[str, Any]:
    """Read a JSON object; repeated keys, NaN and infinity are refused. Raises InputError."""
    try:
        values = json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: not valid JSON: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{what}: must be a JSON object, got {type(values).__name__}")
    return values


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        raise ValueError(f"key {shortened(counts.most_common(1)[0][0])} is given twice")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"numbers must be finite, got {name}")
