"""Signals by which a person or a batch system ends a search."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

END_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what batch systems send."""


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Every end signal raises KeyboardInterrupt inside, as Ctrl-C does.

    Once it was raised the signals are ignored: what is written at the end is not cut short.
    """
    if not _in_main_thread():
        yield
        return
    before = _handlers()
    for number in END_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        _ignore()
        raise
    except BaseException:
        _restore(before)
        raise
    _restore(before)


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """A second Ctrl-C has no effect inside: what is being shut down is not left half way."""
    if not _in_main_thread():
        yield
        return
    before = _handlers()
    _ignore()
    try:
        yield
    finally:
        _restore(before)


def _in_main_thread() -> bool:
    """Python handles signals in the main thread only."""
    return threading.current_thread() is threading.main_thread()


def _handlers() -> Mapping[int, Any]:
    return {number: signal.getsignal(number) for number in END_SIGNALS}


def _ignore() -> None:
    for number in END_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _restore(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
