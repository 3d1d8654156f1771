"""The layouts that a search may still propose."""

from collections.abc import Iterable, Iterator, Sequence

from autotune.layout import Layout


class Candidates:
    """An ordered set of the layouts that a search has not proposed yet."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        """`layouts` gives the order of iteration; duplicates are dropped."""
        self._remaining = dict.fromkeys(layouts)

    def __len__(self) -> int:
        return len(self._remaining)

    def __iter__(self) -> Iterator[Layout]:
        return iter(self._remaining)

    def __contains__(self, layout: object) -> bool:
        return layout in self._remaining

    def remove(self, layouts: Iterable[Layout]) -> None:
        """Remove layouts; unknown ones are ignored."""
        for layout in layouts:
            self._remaining.pop(layout, None)

    def first(self) -> Layout | None:
        """The first remaining layout, or None."""
        return next(iter(self._remaining), None)
