"""Who is told about a search while it goes: its screen, metrics and loggers."""

import abc
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from autotune.errors import first_line
from autotune.request import Request
from autotune.store.record import TrialRecord
from autotune.trial.trial import StepReport, TrialSpec

# At the end of a search, a listener that works through what it was told is given so long.
_LAST_WORDS_SECONDS = 15.0


class Listener(Protocol):
    """Receives the events of a search, to show them or to pass them on."""

    def search_begins(
        self, request: Request, directory: Path, finished: Sequence[TrialRecord]
    ) -> None:
        """A search begins or goes on; `finished` are the trials that ended before."""

    def trial_started(self, spec: TrialSpec) -> None:
        """A trial starts."""

    def step_done(self, spec: TrialSpec, step: StepReport) -> None:
        """A step of a running trial has finished."""

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None:
        """A running trial is repeated; the measurements of its earlier attempt are discarded."""

    def trial_finished(self, record: TrialRecord) -> None:
        """A trial was recorded."""

    def search_ends(self) -> None:
        """No more events come. A trial that was started and did not finish was cut short."""


class _PassesOn(abc.ABC):
    """A `Listener` for which all events are alike."""

    @abc.abstractmethod
    def _pass_on(self, event: Callable[[Listener], None]) -> None:
        """Let `event` tell one or several listeners."""

    def search_begins(
        self, request: Request, directory: Path, finished: Sequence[TrialRecord]
    ) -> None:
        before = list(finished)
        self._pass_on(lambda listener: listener.search_begins(request, directory, before))

    def trial_started(self, spec: TrialSpec) -> None:
        self._pass_on(lambda listener: listener.trial_started(spec))

    def step_done(self, spec: TrialSpec, step: StepReport) -> None:
        self._pass_on(lambda listener: listener.step_done(spec, step))

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None:
        self._pass_on(lambda listener: listener.trial_begins_again(spec, reason))

    def trial_finished(self, record: TrialRecord) -> None:
        self._pass_on(lambda listener: listener.trial_finished(record))

    def search_ends(self) -> None:
        self._pass_on(lambda listener: listener.search_ends())


class Listeners(_PassesOn):
    """Tells several listeners, one after the other."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        """Tell this one, too."""
        self._listeners.append(listener)

    def _pass_on(self, event: Callable[[Listener], None]) -> None:
        for listener in self._listeners:
            event(listener)


class InBackground(_PassesOn):
    """Tells a listener in a thread of its own: a search neither waits for it nor ends with it.

    Where the listener fails, `warn` is told once, and it hears no more.
    """

    def __init__(
        self,
        listener: Listener,
        name: str,
        warn: Callable[[str], object],
        *,
        last_words_seconds: float = _LAST_WORDS_SECONDS,
    ) -> None:
        """`name` is that of the listener in the warning."""
        self._listener = listener
        self._name = name
        self._warn = warn
        self._last_words_seconds = last_words_seconds
        self._events: queue.SimpleQueue[Callable[[Listener], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._tell, daemon=True, name=name)

    def _pass_on(self, event: Callable[[Listener], None]) -> None:
        self._events.put(event)

    def search_begins(
        self, request: Request, directory: Path, finished: Sequence[TrialRecord]
    ) -> None:
        self._thread.start()
        super().search_begins(request, directory, finished)

    def search_ends(self) -> None:
        """Waits until the listener has heard everything, but not for ever."""
        super().search_ends()
        self._events.put(None)
        self._thread.join(self._last_words_seconds)
        if self._thread.is_alive():
            self._warn(f"{self._name} does not keep up: what it has of this search is incomplete")

    def _tell(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                event(self._listener)
            except Exception as error:
                self._warn(f"{self._name} failed, the search goes on without it: {_why(error)}")
                with contextlib.suppress(Exception):
                    self._listener.search_ends()
                return


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
