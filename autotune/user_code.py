"""Runs code that a user wrote: its errors are told in one sentence, its output is kept apart."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import TextIO, TypeVar

import pydantic

from autotune.errors import AutotuneError, InputError, message_of
from autotune.inputs import first_problem

T = TypeVar("T")


def run_user_code(code: Callable[[], T], *, what: str) -> T:
    """The result of `code`, whatever it raises (but Ctrl-C) being an InputError about `what`.

    What it prints goes to the standard error, because the standard output may be JSON.
    """
    with _own_output(what):
        try:
            return code()
        except KeyboardInterrupt:
            raise
        except AutotuneError as error:
            problem = str(error)
        except pydantic.ValidationError as error:
            problem = f"{error.title}: {first_problem(error)}"
        except BaseException as error:  # also SystemExit, GeneratorExit and classes of its own
            problem = _described(error)
    raise InputError(f"{what}: {problem}")


def _described(error: BaseException) -> str:
    name, message = type(error).__name__, message_of(error)
    return name if message == name else f"{name}: {message}"


class _Output(io.TextIOBase):
    """Writes to another stream, which stays open when this one is closed."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if self._stream is None else self._stream.write(text)

    def fileno(self) -> int:
        return super().fileno() if self._stream is None else self._stream.fileno()


@contextlib.contextmanager
def _own_output(what: str) -> Iterator[None]:
    """Restore the standard streams afterwards. Raises InputError where one of them was closed."""
    kept = {descriptor: os.dup(descriptor) for descriptor in range(3) if _is_open(descriptor)}
    output = _Output(sys.stderr)
    closed = False
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield
    finally:
        for descriptor, copy in kept.items():
            closed |= not _is_open(descriptor)
            os.dup2(copy, descriptor)
            os.close(copy)
    if closed:
        raise InputError(f"{what}: must leave the standard streams open")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
