"""Signals by which a person or a batch system ends a search."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SENT_TO_ALL = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What batch systems send to every process of a job some time before its end (Slurm's `--signal`),
and terminals when they are closed."""
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, *SENT_TO_ALL)
"""The signals that end a search; the first two are Ctrl-C, and what batch systems send at the end.
"""


class _InterruptOnce:
    """A signal handler that raises KeyboardInterrupt the first time, and then does nothing."""

    def __init__(self) -> None:
        self._interrupted = False

    def __call__(self, *_: object) -> None:
        if not self._interrupted:
            self._interrupted = True
            raise KeyboardInterrupt


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """The first end signal raises KeyboardInterrupt inside, as Ctrl-C does; others are ignored.

    So what is shut down and written on the way out is not interrupted a second time. A SIGHUP that
    is ignored already stays so: `nohup` means that the search goes on without its terminal. Inside
    another such block nothing is changed.
    """
    if isinstance(signal.getsignal(signal.SIGINT), _InterruptOnce):
        yield
        return
    with _handled_by(_InterruptOnce(), keep_ignored=frozenset({signal.SIGHUP})):
        yield


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """End signals have no effect inside."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def children_spared() -> Iterator[None]:
    """Processes that are started inside never get the signals of `SENT_TO_ALL`, nor do theirs.

    The search ends them in good order. Where such a signal comes in the meantime, this process gets
    it at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _handled_by(
    handler: Callable[..., None] | signal.Handlers,
    *,
    keep_ignored: frozenset[signal.Signals] = frozenset(),
) -> Iterator[None]:
    """Set the handler of all end signals inside, except of those to `keep_ignored` that are ignored
    now. Python allows that in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number for number in keep_ignored if signal.getsignal(number) is signal.SIG_IGN}
    numbers = [number for number in END_SIGNALS if number not in kept]
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            if previous is not None:  # else it was not set from Python
                signal.signal(number, previous)
