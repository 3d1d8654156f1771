"""Reads the figures of steps from the output of a training command."""

import json
import re
from collections.abc import Mapping
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


class LogFigures:
    """Finds figures in lines of the log. The line with the speed ends a step."""

    def __init__(self, recipe: Recipe) -> None:
        self._figures = {
            name: (re.compile(figure.pattern), figure.scale)
            for name, figure in recipe.figures.items()
        }
        self._found: dict[str, float] = {}

    def feed(self, line: str) -> dict[str, float] | None:
        """The figures of a step, if the line ends one. Raises BadReport."""
        for name, (pattern, scale) in self._figures.items():
            if match := pattern.search(line):
                self._found[name] = _number(name, match[1]) * scale
        if not self._found.keys() & set(SPEEDS):
            return None
        found, self._found = self._found, {}
        return found


def reported(line: str) -> dict[str, float]:
    """The figures of a step that the command reported as a JSON line. Raises BadReport."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise BadReport(f"a reported step must be a JSON object, got {line[:100]!r}") from None
    if not isinstance(values, dict):
        raise BadReport(f"a reported step must be a JSON object, got {line[:100]!r}")
    if unknown := sorted(values.keys() - set(_NAMES)):
        raise BadReport(f"a reported step must have {', '.join(_NAMES)}, got {unknown[0][:100]!r}")
    if not values.keys() & set(SPEEDS):
        raise BadReport(f"a reported step must have one of {', '.join(SPEEDS)}, got {line[:100]!r}")
    return {name: _number(name, value) for name, value in values.items() if value is not None}


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
