"""`autotune report`, `show` and `watch`: what they print of a run, and what they refuse."""

import contextlib
import dataclasses
import datetime
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.__main__ import autotune as group
from autotune.ledger.ledger import Ledger
from autotune.ledger.status_file import StatusFile
from autotune.options.command_line import command_line
from autotune.report.facts import RunFacts
from autotune.store.run_directory import open_run
from autotune.store.status import STATUS_FILE, read_status, status_now, write_status
from autotune.trial.trial import Outcome
from tests.autotune.report.test_page import simulated, with_trial
from tests.autotune.simulate import new_store, run_one, run_to_the_end
from trainables.fake import FakeTrainable

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    simulated(directory, max_trials=5)
    return directory


def printed(capsys: Capture, *arguments: object, status: int = 0) -> str:
    assert command_line(group, list(map(str, arguments))) == status
    shown = capsys.readouterr()
    return shown.err if status else shown.out


def test_report_writes_a_page_and_prints_where_it_is(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert printed(capsys, "report", run) == f"{run}/report.html\n"
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    other = tmp_path / "other.html"
    assert printed(capsys, "report", run, "--out", other) == f"{other}\n"
    assert printed(capsys, "report", run, "--markdown").startswith("# Layouts of llm13b, simulated")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("report", "{empty}"), "DIR: no run in '.*' \\(run.json is missing\\)"),
        (("report", "{run}", "--markdown", "--out", "x"), "--out: cannot be given with --markdown"),
        (("report", "{run}", "--out", "none/x.html"), "--out must be in a directory that exists"),
        (("report", "{run}", "--out", "run.json"), "--out must end in .html, got 'run.json'"),
        (("show", "{empty}"), "DIR: no run in"),
        (("show", "{run}", "77"), r"must be the number of a finished trial \(the last is 0008\)"),
        (("show", "{run}", ""), "must be the number of a finished trial"),
        (("show", "{run}", "é\n"), "must be the number of a finished trial"),
        (("watch", "{empty}"), "DIR: no run in"),
        (("watch", "{run}", "--every", "0"), "--every"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, run: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = [word.format(run=run, empty=tmp_path) for word in arguments]
    said = printed(capsys, *words, status=2)
    assert re.search(sentence, said), said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_show_prints_the_run_and_its_advice(run: Path, capsys: Capture) -> None:
    text = printed(capsys, "show", run)
    facts = RunFacts(run)
    assert facts.best is not None
    assert facts.best.layout.describe() in text and "confirmed by a longer trial" in text
    assert "The search ended: max_trials reached (5)." in text
    assert "(trials 0001" in text


def test_show_prints_a_trial_in_full(tmp_path: Path, capsys: Capture) -> None:
    directory = tmp_path / "run"
    ledger = simulated(directory, max_trials=1)
    layout = next(
        lay for lay in ledger.request.all_layouts() if lay not in {r.layout for r in ledger.records}
    )
    record = with_trial(
        ledger.store,
        purpose="explore",
        layout=layout,
        outcome=Outcome.CRASHED,
        reason="rank 1: ValueError: [bold]no",
    )
    logs = directory / "logs" / record.trial_id
    logs.mkdir()
    (logs / "rank-0.log").write_text("the first rank\n")
    ending = b"\nbefore\x1b[2J\nValueError: [bold]no \xff\n"
    (logs / "rank-1.log").write_bytes(b"x" * 10**6 + ending)
    text = printed(capsys, "show", directory, int(record.trial_id))
    assert f"trial {record.trial_id} (explore): {layout.describe()}" in text
    assert "outcome: crashed: rank 1: ValueError: [bold]no" in text
    assert "Predicted seconds per step" in text and "matrix products" in text
    assert "ValueError: [bold]no \N{REPLACEMENT CHARACTER}\n" in text
    assert "before\N{REPLACEMENT CHARACTER}[2J\n" in text and "\x1b" not in text
    assert "the first rank" not in text, "the reason names another one"
    first = printed(capsys, "show", directory, "0001")
    seconds = ledger.records[0].measurement.step_seconds
    assert f"{seconds:.4g}" in first and "warm-up" in first


class Told:
    """A listener that forwards to StatusFile, and keeps what stood in the file."""

    def __init__(self, directory: Path) -> None:
        self.file = StatusFile()
        self.directory = directory
        self.seen: list[object] = []

    def __getattr__(self, event: str) -> object:
        def forward(*arguments: object) -> None:
            getattr(self.file, event)(*arguments)
            status = read_status(self.directory)
            assert status is not None
            self.seen.append((event, status.running, status.trial and status.trial.trial_id))

        return forward


def test_the_status_file_says_what_a_search_does(tmp_path: Path) -> None:
    store = new_store(tmp_path, trainable="simulated", max_trials=1)
    told = Told(tmp_path)
    ledger = Ledger(store, told)  # type: ignore[arg-type]
    told.search_begins(store.request, tmp_path, [])  # type: ignore[operator]
    spec = ledger.next_trial()
    assert spec is not None
    run_one(ledger, FakeTrainable(), spec)
    told.search_ends()  # type: ignore[operator]
    assert told.seen[:3] == [
        ("search_begins", True, None),
        ("trial_started", True, "0001"),
        ("step_done", True, "0001"),
    ]
    assert told.seen[-1] == ("search_ends", False, None)


def test_a_search_that_was_killed_is_told_from_one_that_runs(tmp_path: Path) -> None:
    mine = status_now(running=True)
    assert not mine.is_gone
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    killed = dataclasses.replace(mine, process_id=int(done.stdout))
    assert killed.is_gone
    assert not dataclasses.replace(killed, running=False).is_gone
    assert not dataclasses.replace(killed, host="elsewhere").is_gone
    write_status(tmp_path, killed)
    assert read_status(tmp_path) == killed
    (tmp_path / STATUS_FILE).write_text("{")
    assert read_status(tmp_path) is None


def test_nothing_is_written_into_another_run_at_its_place(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    store = new_store(directory, trainable="simulated", max_trials=1)
    listener = StatusFile()
    listener.search_begins(store.request, directory, [])
    directory.rename(tmp_path / "moved")
    new_store(directory, trainable="simulated", max_trials=2)
    listener.search_ends()
    assert not (directory / STATUS_FILE).exists()
    moved = read_status(tmp_path / "moved")
    assert moved is not None and moved.running


def test_a_status_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    write_status(tmp_path / "none", status_now(running=True))
    assert not list(tmp_path.iterdir())


def test_watch_follows_a_search_of_another_process(tmp_path: Path) -> None:
    """The search of this process is watched by another one."""
    store = new_store(tmp_path, trainable="simulated", max_trials=3, search="grid")
    listener = StatusFile()
    ledger = Ledger(store, listener)
    listener.search_begins(store.request, tmp_path, [])
    spec = ledger.next_trial()
    assert spec is not None
    with watching(tmp_path) as lines:
        assert next(lines).startswith("searching tiny: 696 layouts")
        run_one(ledger, FakeTrainable(), spec)
        assert re.match(r"\[ +1/3\] ok ", next(lines))
        while (spec := ledger.next_trial()) is not None:
            run_one(ledger, FakeTrainable(), spec)
        ledger.write_results()
        listener.search_ends()
        rest = "".join(lines)
    assert re.search(r"^\[ +3/3\] ", rest, flags=re.MULTILINE)
    assert "[confirm] " in rest and "The search ended: max_trials reached (3)." in rest


def test_watch_says_that_a_search_was_killed(tmp_path: Path, capsys: Capture) -> None:
    run_to_the_end(new_store(tmp_path, trainable="simulated", max_trials=3), trials=1)
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    killed = dataclasses.replace(status_now(running=True), process_id=int(done.stdout))
    write_status(tmp_path, killed)
    text = printed(capsys, "watch", tmp_path)
    assert f"the search was killed: go on with autotune run --resume {tmp_path}" in text
    assert re.search(r"^\[ +1/3\] ", text, flags=re.MULTILINE)


@contextlib.contextmanager
def watching(directory: Path) -> Iterator[Iterator[str]]:
    """The lines that `autotune watch` prints, as they come."""
    words = [sys.executable, "-m", "autotune", "watch", str(directory), "--every", "0.05"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield iter(process.stdout)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_watch_says_that_nothing_is_heard_and_that_the_run_is_gone(
    tmp_path: Path, capsys: Capture
) -> None:
    directory = tmp_path / "run"
    run_to_the_end(new_store(directory, trainable="simulated", max_trials=3), trials=1)
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    quiet = dataclasses.replace(status_now(running=True), host="elsewhere", updated_at=long_ago)
    write_status(directory, quiet)
    threading.Timer(1.0, lambda: directory.rename(tmp_path / "away")).start()
    assert command_line(group, ["watch", str(directory), "--every", "0.1"]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("nothing heard for 60 min") == 1
    assert shown.err == f"error: DIR: the run directory {str(directory)!r} is gone\n"


def test_a_log_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    simulated(tmp_path, max_trials=1)
    (tmp_path / "logs" / "0001" / "rank-0.log").mkdir(parents=True)
    text = printed(capsys, "show", tmp_path, 1)
    assert "rank-0.log cannot be read: Is a directory" in text and "matrix products" in text


def test_trials_after_a_number_are_the_newer_ones(run: Path) -> None:
    store = open_run(run)
    every = store.trials()
    assert store.trials_after(None) == every
    assert store.trials_after("0003") == every[3:]
    assert store.trials_after(every[-1].trial_id) == []


def test_watching_does_not_change_the_run(run: Path, capsys: Capture) -> None:
    before = {f: f.read_bytes() for f in sorted(run.rglob("*")) if f.is_file()}
    printed(capsys, "watch", run)
    printed(capsys, "show", run)
    assert {f: f.read_bytes() for f in sorted(run.rglob("*")) if f.is_file()} == before
    assert json.loads((run / "best.json").read_text())["simulated"]
