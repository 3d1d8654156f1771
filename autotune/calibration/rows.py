"""Cells of recorded runs as checked values. A row has its file and line under `where`."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic

from autotune.errors import InputError
from autotune.inputs import (
    LARGEST_AMOUNT,
    LARGEST_COUNT,
    SMALLEST_AMOUNT,
    Name,
    first_problem,
    shown,
)
from autotune.model import Model

_VOCABULARY = 128_000
# Blocks, width, heads, feed-forward width: table 1 of the paper and its model configurations.
SHAPES = {
    "13B": (40, 5120, 40, 13824),
    "30B": (60, 6656, 52, 17888),
    "65B": (80, 8192, 64, 22016),
}
_NAME: pydantic.TypeAdapter[str] = pydantic.TypeAdapter(Name)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def model_of(row: Mapping[str, Any]) -> Model:
    blocks, hidden, heads, inner = SHAPES[choice_of(row, "model", SHAPES)]
    return Model(
        num_hidden_layers=blocks,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=_VOCABULARY,
        sequence_length=number_of(row, "sequence_length"),
        global_batch_size=number_of(row, "global_batch_size"),
        precision="bf16",
    )


def field_of(row: Mapping[str, Any], name: str, where: str) -> Any:
    value = row.get(name)
    if value is None or value == "":
        raise InputError(f"{where}: {name} is missing")
    return value


def name_of(row: Mapping[str, Any], name: str, where: str) -> str:
    value = field_of(row, name, where)
    try:
        return str(_NAME.validate_python(str(value)))
    except pydantic.ValidationError as error:
        raise InputError(f"{where}: {name}: {first_problem(error)}") from None


def refuse_repeated_columns(names: Sequence[str], where: str) -> None:
    repeated = [name for name, n in collections.Counter(names).items() if name and n > 1]
    if repeated:
        raise InputError(f"{where}: column {shown(repeated[0])} is given twice")


def number_of(row: Mapping[str, Any], name: str) -> int:
    value = field_of(row, name, row["where"])
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if not 1 <= number <= LARGEST_COUNT:
        raise InputError(
            f"{row['where']}: {name} must be a whole number from 1 to {LARGEST_COUNT}, "
            f"got {shown(value)}"
        )
    return number


def whole_of(row: Mapping[str, Any], name: str, largest: int) -> int:
    """A whole number from 0 to `largest`."""
    value = field_of(row, name, row["where"])
    if str(value) not in map(str, range(largest + 1)):
        raise InputError(
            f"{row['where']}: {name} must be a whole number from 0 to {largest}, got {shown(value)}"
        )
    return int(value)


def positive_of(row: Mapping[str, Any], name: str) -> float:
    value = field_of(row, name, row["where"])
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not SMALLEST_AMOUNT <= number <= LARGEST_AMOUNT:
        raise InputError(
            f"{row['where']}: {name} must be a number from {SMALLEST_AMOUNT:g} to "
            f"{LARGEST_AMOUNT:g}, got {shown(value)}"
        )
    return number


def flag_of(row: Mapping[str, Any], name: str) -> bool:
    value = str(field_of(row, name, row["where"])).lower()
    if value not in _BOOLEANS:
        raise InputError(f"{row['where']}: {name} must be True or False, got {shown(value)}")
    return _BOOLEANS[value]


def choice_of(row: Mapping[str, Any], name: str, known: Iterable[str]) -> str:
    value = str(field_of(row, name, row["where"]))
    if value not in known:
        raise InputError(
            f"{row['where']}: {name} must be one of {', '.join(known)}, got {shown(value)}"
        )
    return value
