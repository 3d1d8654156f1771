"""A loop ends when the head is gone, and its errors are those of the head where it is."""

import os
import signal
import threading
import time

import pytest

from autotune.errors import HeadGone, NodesGone
from autotune.on_ray import head_watch
from autotune.on_ray.head_watch import run_while_head_answers


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("PERIOD", 0.01), ("REFUSED", 0.1), ("SILENT", 60.0), ("STOP", 5.0)):
        monkeypatch.setattr(head_watch, f"_{name}_SECONDS", seconds)
    monkeypatch.setattr(head_watch, "connected_head", lambda: "192.0.2.1:6379")


def head(monkeypatch: pytest.MonkeyPatch, error: type[OSError] | None) -> None:
    def answers(address: str, timeout_seconds: float) -> bool:
        if error is not None:
            raise error("made up")
        return True

    monkeypatch.setattr(head_watch, "head_answers", answers)


def test_a_call_that_never_returns_does_not_hold_a_search_whose_head_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head(monkeypatch, ConnectionError)
    blocked = threading.Event()
    sentence = r"^the head of the Ray cluster at 192\.0\.2\.1:6379 is gone$"
    with pytest.raises(HeadGone, match=sentence):
        run_while_head_answers(lambda: bool(blocked.wait(60)), stop=lambda: None)
    blocked.set()


def test_a_head_that_is_slow_to_answer_gets_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    head(monkeypatch, TimeoutError)
    done = threading.Event()
    run_while_head_answers(lambda: done.wait(1.0), stop=lambda: None)


@pytest.mark.parametrize(
    ("of_head", "of_loop", "raised"),
    [
        (None, RuntimeError, RuntimeError),
        (ConnectionError, RuntimeError, HeadGone),
        (ConnectionError, NodesGone, NodesGone),
    ],
)
def test_an_error_of_the_loop_has_its_cause(
    of_head: type[OSError] | None,
    of_loop: type[Exception],
    raised: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head(monkeypatch, of_head)

    def fails() -> None:
        raise of_loop("made up")

    with pytest.raises(raised):
        run_while_head_answers(fails, stop=lambda: None)


def test_an_interrupt_stops_the_loop_first(monkeypatch: pytest.MonkeyPatch) -> None:
    head(monkeypatch, None)
    stopped, ended = threading.Event(), threading.Event()

    def loop() -> None:
        stopped.wait(30)
        time.sleep(0.5)
        ended.set()

    monkeypatch.setattr(head_watch, "_PERIOD_SECONDS", 60.0)  # interrupted while it waits
    ctrl_c = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    ctrl_c.start()
    with pytest.raises(KeyboardInterrupt):
        run_while_head_answers(loop, stop=stopped.set)
    assert ended.is_set(), "it does not use a Ray that is being shut down"
