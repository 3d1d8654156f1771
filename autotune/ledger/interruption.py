"""Signals by which a person or a batch system ends a search."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

END_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what batch systems send."""


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """The first end signal raises KeyboardInterrupt inside, as Ctrl-C does; others are ignored.

    So what is shut down and written on the way out is not interrupted a second time.
    """
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    with _handled_by(interrupt):
        yield


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """End signals have no effect inside."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handled_by(handler: Callable[..., None] | signal.Handlers) -> Iterator[None]:
    """Set the handler of all end signals inside. Python allows that in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in END_SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            if previous is not None:  # else it was not set from Python
                signal.signal(number, previous)
