"""Functions run in fresh processes: a GPU's memory, and what a library left behind, end with them.

They are forked from a server that has imported torch but never touched CUDA.
"""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class ChildFailed(Exception):
    """The function raised, its process died, or it took too long; the message says which."""


class ChildTookTooLong(ChildFailed):
    """The function was not done in time."""


class Children:
    """Runs functions of importable modules, one at a time."""

    def __init__(self, preload: list[str]) -> None:
        """`preload`: modules that the server imports before its first child."""
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
