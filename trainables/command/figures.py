"""Reads the figures of steps from the output of a training command."""

import json
import os
import re
import runpy
from collections.abc import Callable, Mapping
from typing import Any, get_args

from trainables.command.recipe import SPEEDS, FigureName, Recipe

_NAMES = get_args(FigureName)
# A line is cut here: a program may print progress without ever ending the line.
_LONGEST_LINE = 2**16


class BadReport(Exception):
    """The command reported something that is not a step."""


class Lines:
    """Splits bytes into lines; a carriage return ends a line, too."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that the chunk completes."""
        *lines, self._rest = re.split(rb"[\r\n]", self._rest + chunk)
        self._rest = self._rest[-_LONGEST_LINE:]
        return [line.decode(errors="replace") for line in lines if line]


LineReader = Callable[[str], Mapping[str, float] | None]
"""Called with each line of the log: the figures of a step, if the line ends one. Raises
BadReport."""


def line_reader(recipe: Recipe) -> LineReader | None:
    """What reads the log; None where the command reports its steps. Raises BadReport."""
    if recipe.reader is not None:
        return _function(recipe.reader, recipe.directory)
    return _Patterns(recipe) if recipe.figures else None


class _Patterns:
    """Finds figures by regular expressions. The line with the speed ends a step."""

    def __init__(self, recipe: Recipe) -> None:
        self._figures = {
            name: (re.compile(figure.pattern), figure.scale)
            for name, figure in recipe.figures.items()
        }
        self._found: dict[str, float] = {}

    def __call__(self, line: str) -> dict[str, float] | None:
        for name, (pattern, scale) in self._figures.items():
            if match := pattern.search(line):
                self._found[name] = _number(name, match[1]) * scale
        if not self._found.keys() & set(SPEEDS):
            return None
        found, self._found = self._found, {}
        return found


def _function(reader: str, directory: str | None) -> LineReader:
    """The user's function FILE.py:FUNCTION."""
    file, _, name = reader.rpartition(":")
    try:
        function = runpy.run_path(os.path.join(directory or ".", file))[name]
    except Exception as error:
        raise BadReport(f"reader {reader}: {type(error).__name__}: {error}") from None

    def read(line: str) -> Mapping[str, float] | None:
        try:
            figures = function(line)
        except Exception as error:
            raise BadReport(f"reader {reader}: {type(error).__name__}: {error}") from None
        return None if figures is None else _checked(figures, f"what {name} returns")

    return read


def reported(line: str) -> tuple[int, dict[str, float]]:
    """The rank that reported a step as a JSON line (0 where it does not say), and the figures.
    Raises BadReport."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise BadReport(f"a reported step must be a JSON object, got {line[:100]!r}") from None
    rank = values.pop("rank", 0) if isinstance(values, dict) else 0
    if type(rank) is not int:
        raise BadReport(f"the rank of a reported step must be a number, got {str(rank)[:100]!r}")
    return rank, _checked(values, "a reported step")


def _checked(values: Any, what: str) -> dict[str, float]:
    """The figures of a step. Raises BadReport."""
    got = f"got {str(values)[:100]!r}"
    if not isinstance(values, Mapping):
        raise BadReport(f"{what} must be a JSON object, {got}")
    if unknown := [name for name in values if name not in _NAMES]:
        raise BadReport(f"{what} must have {', '.join(_NAMES)}, got {str(unknown[0])[:100]!r}")
    figures = {name: _number(name, value) for name, value in values.items() if value is not None}
    if not figures.keys() & set(SPEEDS):
        raise BadReport(f"{what} must have one of {', '.join(SPEEDS)}, {got}")
    return figures


def step_seconds(figures: Mapping[str, float], *, tokens: int, devices: int) -> float:
    """Time of a step that trains so many tokens on so many devices."""
    if "step_seconds" in figures:
        return figures["step_seconds"]
    rate = figures.get("tokens_per_second")
    if rate is None:
        rate = figures["tokens_per_second_per_device"] * devices
    return tokens / rate if rate else float("inf")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadReport(f"{name} must be a number, got {str(value)[:100]!r}")
    try:
        return float(value.replace(",", "") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        raise BadReport(f"{name} must be a number, got {str(value)[:100]!r}") from None
