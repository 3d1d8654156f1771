"""The standard streams of a command: closed, full, or with nobody at the other end.

A command whose result is its output ends with an error where the output cannot be written. A search
goes on without its screen: its results are on record.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from rich.console import Console

_PLAIN_WIDTH = 130


class OutputFailed(OSError):
    """The standard output cannot be written. An OSError for libraries, which expect one."""

    def __init__(self, error: Exception) -> None:
        """`error` is what the stream raised."""
        super().__init__(getattr(error, "strerror", None) or str(error))
        self.reader_is_gone = isinstance(error, BrokenPipeError)
        """Whether that is because a pipe was closed, as by `| head`."""


def plain_console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr that prints text unchanged, without rich markup."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """For one command: stdout raises OutputFailed, stderr drops what cannot be written.

    So do streams that were closed (`>&-`). What is left in the buffers is written at the end.
    """
    _open_closed_descriptors()
    out, errors = _Stream(sys.stdout), _LastingStream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            yield
            out.flush_unless_failed()
        finally:
            errors.flush()


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Inside, both streams drop what cannot be written, and all that follows."""
    out, errors = _LastingStream(sys.stdout), _LastingStream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        yield


@contextlib.contextmanager
def results_only() -> Iterator[TextIO]:
    """What was stdout, for results: what libraries and child processes print goes to stderr.

    Its failures are those of stdout in `standard_streams`.
    """
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as file:
        os.dup2(2, 1)
        out = _Stream(file)
        out.take_failure_of(sys.stdout)
        yield cast(TextIO, out)


class _Stream:
    """A text stream that raises OutputFailed, also where there is no stream (None)."""

    def __init__(self, stream: Any) -> None:
        self._stream = io.StringIO() if stream is None else stream
        self._failure: OutputFailed | None = None
        if stream is None:
            self._failure = OutputFailed(OSError(errno.EBADF, os.strerror(errno.EBADF)))

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def flush_unless_failed(self) -> None:
        """The same, but no failure that was raised before is raised again."""
        if self._failure is None:
            self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def take_failure_of(self, other: object) -> None:
        """Raise from now on what the other stream would raise."""
        if isinstance(other, _Stream):
            self._failure = other._failure

    def _try(self, action: Callable[[Any], object]) -> None:
        if self._failure is None:
            try:
                action(self._stream)
                return
            except OutputFailed as failure:  # of a stream like this one
                self._failure = failure
            except (OSError, ValueError) as error:  # ValueError: the stream object is closed
                self._failure = OutputFailed(error)
                self._drop_the_rest()
        self._fail(self._failure)

    def _fail(self, failure: OutputFailed) -> None:
        raise failure

    def _drop_the_rest(self) -> None:
        """Let the stream lead to /dev/null. What is in its buffer would be written again when the
        interpreter exits, which would then complain on its own."""
        with contextlib.suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)


class _LastingStream(_Stream):
    """A text stream that drops what it cannot write."""

    def _fail(self, failure: OutputFailed) -> None:
        pass


def _open_closed_descriptors() -> None:
    """Open /dev/null as each standard descriptor that is closed.

    Otherwise the next file that is opened takes its number, and whatever is printed by libraries
    and child processes lands in that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(descriptor, True)
