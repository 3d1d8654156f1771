"""Parts that the report of a run consists of."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells as text; numbers are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[str] = frozenset()
    """Columns of numbers."""
    caption: str = ""
    long: bool = False
    """Whether it is only for who wants to look something up."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart, or several small ones of one kind."""

    title: str
    caption: str
    charts: Callable[[], Sequence[Any]]
    """Makes the Altair charts, which take the width of their place. A text report needs none."""
    scrolls: bool = False
    """Whether the charts keep their width, and are scrolled where there is less."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    title: str
    sentences: Sequence[str] = ()
    points: Sequence[str] = ()
    """Sentences of a list."""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    in_text: bool = True
    """Whether a text report has it."""
