"""What a search shows while it goes, and at its end."""

import dataclasses
import datetime
import io
import re
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from autotune.ledger.ledger import Ledger
from autotune.report import Screen, dry_run, print_dry_run, print_end
from autotune.report.screen import print_best
from autotune.trial.trial import Ended, Outcome
from tests.autotune.simulate import fake_request, new_store, run_one, run_to_the_end
from trainables.fake import FakeTrainable


def screen(*, terminal: bool = False) -> Screen:
    file = io.StringIO()
    return Screen(Console(file=file, width=160, force_terminal=terminal, highlight=False))


def shown(screen: Screen) -> str:
    assert isinstance(screen.console.file, io.StringIO)
    return screen.console.file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_for_each_trial(tmp_path: Path, terminal: bool) -> None:
    display = screen(terminal=terminal)
    store = new_store(tmp_path, trainable="simulated", max_trials=3, search="grid")
    display.search_begins(store.request, tmp_path, [])
    ledger = Ledger(store, display)
    for outcome in (Outcome.OK, Outcome.OOM, Outcome.CRASHED):
        spec = ledger.next_trial()
        assert spec is not None
        if outcome is Outcome.OK:
            run_one(ledger, FakeTrainable(), spec)
        else:
            ledger.trial_ended(spec.trial_id, Ended(outcome=outcome, reason="rank [1]: no"))
    display.search_ends()
    text = shown(display)
    assert "searching tiny: 696 layouts on 2 virtual nodes of 2 cpu, at most 3 trials" in text
    if terminal:
        return
    first, second, third = [line for line in text.splitlines() if line.startswith("[")]
    assert first.startswith("[    1/3] ok")
    assert second.startswith("[    2/3] oom") and second.endswith("(limit 0.125 GiB)")
    assert third.startswith("[    3/3] crashed") and third.endswith("(rank [1]: no)")


@pytest.mark.parametrize("same_python", [True, False])
def test_the_end_of_a_search(
    same_python: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Path(sys.executable).parent / "python3" if same_python else "/elsewhere/python3"
    monkeypatch.setattr(shutil, "which", lambda name: str(found))
    display = screen()
    ledger = Ledger(new_store(tmp_path, trainable="simulated", max_trials=1), display)
    explored = ledger.next_trial()
    assert explored is not None
    run_one(ledger, FakeTrainable(), explored)
    confirmation = ledger.next_trial()
    assert confirmation is not None
    ledger.trial_ended(confirmation.trial_id, Ended(outcome=Outcome.OOM, reason="x" * 500))
    assert ledger.is_over
    print_end(display, ledger, tmp_path)
    lines = shown(display).splitlines()
    assert any(line.startswith("finished: max_trials reached (1)") for line in lines)
    assert any("the best layout is not confirmed" in line and len(line) < 300 for line in lines)
    python = "" if same_python else f"PYTHON={sys.executable} "
    assert f"train it with {python}{tmp_path}/export/launch.sh" in lines
    assert lines[-1] == "simulated: figures are predictions"


def test_where_nothing_worked_it_says_where_the_reasons_are(tmp_path: Path) -> None:
    display = screen()
    ledger = Ledger(new_store(tmp_path, max_trials=1), display)
    spec = ledger.next_trial()
    assert spec is not None
    ledger.trial_ended(spec.trial_id, Ended(outcome=Outcome.CRASHED, reason="rank 0"))
    print_end(display, ledger, tmp_path)
    assert f"no layout worked; see the reasons in {tmp_path}/trials" in shown(display)


def test_a_dry_run_says_what_would_run_and_how_long_it_is_predicted_to_take() -> None:
    request = fake_request(trainable="simulated")
    content = dry_run(request)
    assert content["predicted"] and content["layouts"] == 696
    assert 0 < content["expected_seconds"] < 3600
    assert content["expected_gpu_hours"] == pytest.approx(4 * content["expected_seconds"] / 3600)
    assert content["expected_gpu_hours"] <= content["most_gpu_hours"]
    assert sum(content["not_generated"].values()) > 1000 and content["nothing_fits"] is None
    display = screen()
    print_dry_run(display.console, request)
    text = shown(display)
    assert "predicted to take about" in text and text.endswith("Nothing was started.\n")
    assert text.count("\n") <= 12


@pytest.mark.parametrize("width", [80, 100])
def test_the_fastest_layouts_on_a_narrow_terminal(width: int, tmp_path: Path) -> None:
    ledger = run_to_the_end(new_store(tmp_path, trainable="simulated", max_trials=8))
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_best(console, ledger.best, simulated=True)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(map(len, text.splitlines())) <= width
    for word in ledger.best[0].layout.describe().split():
        assert word in text
    assert "within noise" in " ".join(text.split()) or "+" in text


def test_the_latest_end_follows_from_the_trials_so_far(tmp_path: Path) -> None:
    display = screen(terminal=True)
    store = new_store(tmp_path, trainable="simulated", max_trials=4, search="grid")
    ledger = run_to_the_end(store, trials=2)
    hour = datetime.timedelta(hours=1)
    slow = [dataclasses.replace(r, finished_at=r.started_at + hour) for r in ledger.records]
    display.search_begins(store.request, tmp_path, slow)
    display.show_running("tp1", "starting")
    display.search_ends()
    # Two trials and three confirmations are left, an hour each.
    end = datetime.datetime.now() + 5 * hour
    about = {f"{end - datetime.timedelta(minutes=late):%H:%M}" for late in range(3)}
    assert any(f"ends by {time}" in shown(display) or time in shown(display) for time in about)


def test_no_colour_where_it_is_not_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    assert not coloured.search(_told_of_a_trial(tmp_path / "plain"))
    monkeypatch.delenv("NO_COLOR")
    assert coloured.search(_told_of_a_trial(tmp_path / "coloured"))


def _told_of_a_trial(directory: Path) -> str:
    console = Console(file=io.StringIO(), width=160, force_terminal=True, highlight=False)
    display = Screen(console)
    display.trial_finished(run_to_the_end(new_store(directory), trials=1).records[0])
    return shown(display)
