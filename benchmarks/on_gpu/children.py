"""Runs functions in fresh processes, so that GPU memory and library state are released afterwards.

The processes are forked from a server that has imported torch but has not initialised CUDA.
"""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class ChildFailed(Exception):
    """The function raised an exception, its process died, or it timed out; see the message."""


class ChildTookTooLong(ChildFailed):
    """The function timed out."""


class Children:
    """Runs functions of importable modules, one at a time."""

    def __init__(self, preload: list[str]) -> None:
        """`preload`: modules that the fork server imports."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(preload)

    def call(self, function: Callable[..., Any], *args: Any, timeout_seconds: float) -> Any:
        """The function's result. Raises ChildFailed."""
        receiving, sending = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_run, args=(sending, function, args), daemon=True)
        process.start()
        sending.close()
        deadline = time.monotonic() + timeout_seconds
        try:
            if not receiving.poll(max(0.0, deadline - time.monotonic())):
                raise ChildTookTooLong(f"took longer than {timeout_seconds:.0f} s")
            succeeded, value = receiving.recv()
        except EOFError:
            process.join()
            raise ChildFailed(f"its process ended with status {process.exitcode}") from None
        finally:
            process.kill()
            process.join()
            receiving.close()
        if not succeeded:
            raise ChildFailed(value)
        return value


def _run(sending: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        sending.send((True, function(*args)))
    except Exception as error:  # handed to the caller
        sending.send((False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))
