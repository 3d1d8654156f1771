"""End signals interrupt once, and handlers are as before afterwards."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from autotune.ledger.interruption import (
    END_SIGNALS,
    SENT_TO_ALL,
    children_spared,
    signals_ignored,
    signals_interrupt,
)


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
            signal.raise_signal(number)
            raise AssertionError("the signal is handled at once")
        finally:
            for other in END_SIGNALS:
                signal.raise_signal(other)
            undone = True
    assert undone


def test_handlers_come_back_without_a_signal_too() -> None:
    with signals_interrupt():
        pass
    with signals_ignored():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def test_a_block_inside_another_counts_the_signals_of_both() -> None:
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        try:
            with signals_interrupt():
                signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.raise_signal(signal.SIGTERM)  # no second KeyboardInterrupt in the clean-up


def test_a_search_under_nohup_goes_on_without_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_interrupt():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_to_all_processes_of_a_job_spare_the_children_and_theirs() -> None:
    ready = "print('ready', flush=True); input()"
    child = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {ready!r}]))"
    with children_spared():
        process = subprocess.Popen(
            [sys.executable, "-c", child],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in SENT_TO_ALL:
        os.killpg(process.pid, number)
    process.communicate("go on\n", timeout=20)
    assert process.returncode == 0


def test_a_signal_while_children_are_started_comes_afterwards() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), signals_interrupt(), children_spared():
        # To this thread: another may not block the signal, and would take one to the process.
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        reached = True
    assert reached


def test_in_another_thread_nothing_is_changed() -> None:
    """As in a notebook or a web server: Python handles signals in the main thread only."""
    problems = []

    def run() -> None:
        try:
            with signals_interrupt(), children_spared(), signals_ignored():
                pass
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert problems == []
