"""Tables of layouts that a terminal of 80 columns shows without cutting a word."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from autotune.layout import Layout

# A terminal of this width shows layouts in full.
_WIDE = 128
# The longest word of a layout, so that none is cut.
_LONGEST_WORD = 16


def narrow_table(title: str) -> Table:
    """A table whose columns stand close together."""
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def add_layout_column(table: Table, layouts: Sequence[Layout], width: int) -> list[str]:
    """Add a column for layouts and return their cells.

    On a terminal of less than `_WIDE` columns the words that all layouts share are in the table's
    caption instead, and what is left is wrapped between words.
    """
    table.add_column("layout", min_width=_LONGEST_WORD)
    words = [layout.describe().split() for layout in layouts]
    if width >= _WIDE or len(layouts) < 2:
        return [" ".join(own) for own in words]
    shared = [word for word in words[0] if all(word in own for own in words)]
    if shared:
        table.caption = f"all: {' '.join(shared)}"
    return [" ".join(word for word in own if word not in shared) or "the same" for own in words]
