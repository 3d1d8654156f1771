"""End signals interrupt once, and handlers are as before afterwards."""

import os
import signal
import threading

import pytest

from autotune.ledger.interruption import END_SIGNALS, signals_ignored, signals_interrupt


@pytest.fixture(autouse=True)
def handlers_are_kept() -> object:
    before = [signal.getsignal(number) for number in END_SIGNALS]
    yield
    assert [signal.getsignal(number) for number in END_SIGNALS] == before


@pytest.mark.parametrize("number", END_SIGNALS)
def test_the_first_signal_interrupts_and_others_do_not(number: int) -> None:
    undone = False
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        try:
            os.kill(os.getpid(), number)
            raise AssertionError("the signal is handled at once")
        finally:
            for other in END_SIGNALS:
                os.kill(os.getpid(), other)
            undone = True
    assert undone


def test_handlers_come_back_without_a_signal_too() -> None:
    with signals_interrupt():
        pass
    with signals_ignored():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)


def test_in_another_thread_nothing_is_changed() -> None:
    """As in a notebook or a web server: Python handles signals in the main thread only."""
    problems = []

    def run() -> None:
        try:
            with signals_interrupt(), signals_ignored():
                pass
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert problems == []
