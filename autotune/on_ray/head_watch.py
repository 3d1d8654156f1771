"""Runs a loop of Ray calls while the head of the cluster answers."""

import contextlib
import threading
import time
from collections.abc import Callable

from autotune.errors import AutotuneError, HeadGone
from autotune.on_ray.ray_internals import connected_head, head_answers

_PERIOD_SECONDS = 0.5
_ANSWER_SECONDS = 5.0
# Nobody listens at the head's address any more: its process has ended.
_REFUSED_SECONDS = 3.0
# Its host may be busy, or the network interrupted. Ray itself gives up after 60 s.
_SILENT_SECONDS = 30.0
# An iteration of the loop takes a tenth of a second, and writing a trial may take longer.
_STOP_SECONDS = 20.0


def run_while_head_answers(loop: Callable[[], object], *, stop: Callable[[], None]) -> None:
    """Run the loop to its end. Raises its exception, or HeadGone; `stop` must make the loop end.

    The loop runs in a thread of its own: without the head Ray's calls do not return, cannot be
    interrupted, and after a minute end the process with a line of their own.
    """
    errors: list[BaseException] = []
    # Not the thread's own state: Python 3.11 takes a thread for ended when join() is interrupted.
    ended = threading.Event()

    def run() -> None:
        try:
            loop()
        except SystemExit:
            pass  # by which the loop ends in the middle of Ray's code
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    head = connected_head()
    threading.Thread(target=run, daemon=True, name="Tune").start()
    wait_seconds = _STOP_SECONDS
    try:
        _watch(ended, head)
    except HeadGone:
        wait_seconds = _PERIOD_SECONDS
        raise
    finally:
        # After an interrupt the loop must not use a Ray that is being shut down.
        if not ended.is_set():
            stop()
            ended.wait(wait_seconds)
    if errors:
        # Ray's calls may have failed before the watch noticed why.
        if not isinstance(errors[0], AutotuneError) and not _answers(head):
            raise _gone(head)
        raise errors[0]


def _watch(ended: threading.Event, head: str) -> None:
    """Return when the loop has ended; raises HeadGone."""
    answered_at = time.monotonic()
    while not ended.is_set():
        asked_at = time.monotonic()
        try:
            head_answers(head, _ANSWER_SECONDS)
            answered_at, patience = asked_at, _SILENT_SECONDS
        except TimeoutError:
            patience = _SILENT_SECONDS
        except ConnectionError:
            patience = _REFUSED_SECONDS
        if time.monotonic() - answered_at > patience:
            raise _gone(head)
        ended.wait(_PERIOD_SECONDS)


def _answers(head: str) -> bool:
    with contextlib.suppress(OSError):
        head_answers(head, _ANSWER_SECONDS)
        return True
    return False


def _gone(head: str) -> HeadGone:
    return HeadGone(f"the head of the Ray cluster at {head} is gone")
