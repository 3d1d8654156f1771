"""Python's garbage collector runs between steps, where it is not timed, and never within one."""

import contextlib
import gc
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def collected_between_steps() -> Iterator[Callable[[], object]]:
    """Turn the collector off until the end; yields what collects, to be called after each step.

    What there is by now stays until the end and is not searched again, so that a collection takes
    less than a millisecond. After each step, so that none of its memory is kept for the next.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield gc.collect
    finally:
        gc.enable()
