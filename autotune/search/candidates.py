"""The layouts that a search may still propose."""

from collections.abc import Iterable, Iterator, Sequence

from autotune.layout import Layout


class Candidates:
    """An ordered set of layouts, each given out once."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        """`layouts` in the order in which they are iterated; repetitions count once."""
        self._left = dict.fromkeys(layouts)

    def __len__(self) -> int:
        return len(self._left)

    def __iter__(self) -> Iterator[Layout]:
        return iter(self._left)

    def __contains__(self, layout: object) -> bool:
        return layout in self._left

    def remove(self, layouts: Iterable[Layout]) -> None:
        """Take layouts out; those that are not in are passed over."""
        for layout in layouts:
            self._left.pop(layout, None)

    def first(self) -> Layout | None:
        """The first layout left, or None."""
        return next(iter(self._left), None)
