"""Handling of SIGINT and SIGTERM, by which a user or a batch system ends a search."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

END_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""SIGINT (Ctrl-C), and SIGTERM, which batch systems send."""


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM both raise KeyboardInterrupt.

    After the first one the signals are ignored, so that a second does not interrupt the clean-up.
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
    """Inside, SIGINT and SIGTERM have no effect, so that a shutdown is completed."""
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
    """Whether this is the main thread: only there does Python allow signal handlers."""
    return threading.current_thread() is threading.main_thread()


def _handlers() -> Mapping[int, Any]:
    return {number: signal.getsignal(number) for number in END_SIGNALS}


def _ignore() -> None:
    for number in END_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _restore(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
