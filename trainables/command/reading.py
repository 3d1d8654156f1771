"""Says how the figures of a trial were found in its logs, for a user who writes the patterns."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainables.command.figures import BadReport, Lines, line_reader
from trainables.command.recipe import Recipe, recipe_of

_LAST_LINES = 12
_LONGEST_SHOWN = 160


def how_figures_were_read(values: Mapping[str, Any], logs: Path) -> list[str]:
    """Sentences about the logs rank-N.log in that folder; `values` are those of the recipe."""
    recipe = recipe_of(values)
    lines = list(_lines(logs))
    if not lines:
        return [f"no output is in {logs}"]
    if recipe.reader is not None:
        said, found_all = _by_reader(recipe, lines)
    elif recipe.figures:
        said, found_all = _by_patterns(recipe, lines)
    else:
        return ["no figures are read from the output: the command reports its steps itself"]
    return said if found_all else [*said, "the last lines of the output:", *_last(lines)]


def _by_patterns(recipe: Recipe, lines: list[str]) -> tuple[list[str], bool]:
    """A sentence on each figure, and whether all were found."""
    said, found_all = [], True
    for name, figure in recipe.figures.items():
        pairs = [(line, match) for line in lines if (match := re.search(figure.pattern, line))]
        if pairs:
            line, match = pairs[0]
            scaled = "" if figure.scale == 1 else f" x {figure.scale:g}"
            first = f"the first has {match[1]!r}{scaled}: {_cut(line)}"
            said.append(f"{name}: {len(pairs)} lines of {len(lines)}, {first}")
        else:
            said.append(f"{name}: no line of {len(lines)} matches {figure.pattern!r}")
            found_all = False
    return said, found_all


def _by_reader(recipe: Recipe, lines: list[str]) -> tuple[list[str], bool]:
    """Sentences on the user's function, and whether it found a step."""
    try:
        read = line_reader(recipe)
        assert read is not None
        found = [(line, figures) for line in lines if (figures := read(line))]
    except BadReport as error:
        return [str(error)], False
    said = [f"reader {recipe.reader}: {len(found)} lines of {len(lines)} end a step"]
    if found:
        line, figures = found[0]
        said.append(f"the first gives {dict(figures)}: {_cut(line)}")
    return said, bool(found)


def _lines(logs: Path) -> Iterator[str]:
    for file in sorted(logs.glob("rank-*.log"), key=lambda file: int(file.stem[len("rank-") :])):
        lines = Lines()
        yield from (line for line in lines.feed(file.read_bytes() + b"\n") if line.strip())


def _last(lines: list[str]) -> list[str]:
    return [f"  {_cut(line)}" for line in lines[-_LAST_LINES:]]


def _cut(line: str) -> str:
    line = line.strip()
    return line if len(line) <= _LONGEST_SHOWN else line[: _LONGEST_SHOWN - 3] + "..."
