"""Faults of the search process and its run directory: killed, interrupted, disk full.

The trials are simulated, so that an undisturbed search can be compared with row by row.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from tests.autotune.test_run import family_of, wait_until_gone
from tests.faults.conftest import Row

pytestmark = [pytest.mark.timeout(300)]

SEARCH = ("--space", "llm13b", "--nodes", "2", "--trainable", "simulated", "--max-trials", "12")
# Columns that differ between runs: times of day and durations on this machine.
OF_THIS_RUN = {"started_at", "finished_at", "startup_seconds"}
EXPLORED_ONE_BY_ONE = ("--search", "random", "--seed", "3")


def started(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autotune.run", "--no-dashboard", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def run_to_the_end(*arguments: object) -> tuple[int, str]:
    process = started(*arguments)
    output, _ = process.communicate(timeout=200)
    return process.returncode, output


def rows(directory: Path) -> list[dict[str, Any]]:
    files = sorted(directory.glob("trials/0*.parquet"))
    return [
        {name: value for name, value in row.items() if name not in OF_THIS_RUN}
        for file in files
        for row in pq.read_table(file).to_pylist()
    ]


def best(directory: Path) -> Any:
    return json.loads((directory / "best.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    status, output = run_to_the_end(*SEARCH, *EXPLORED_ONE_BY_ONE, "--out", directory)
    assert status == 0, output
    assert len(rows(directory)) == 15
    return directory


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "the search does not get on"
        time.sleep(0.01)


def finished(directory: Path) -> int:
    return len(list(directory.glob("trials/0*.parquet")))


def end_at_random_moments(
    folder: Path, kills: int, signal_number: int, seed: int
) -> Iterator[Path]:
    """Send searches the signal that many times, resuming them; yields those that came to an end."""
    chance = random.Random(seed)
    number, sent = 0, 0
    while sent < kills:
        directory = folder / f"run-{number}"
        if (directory / "run.json").exists():
            search = started("--resume", directory)
        else:
            search = started(*SEARCH, *EXPLORED_ONE_BY_ONE, "--out", directory)
        # Anywhere between the start of Ray and a few trials more than before.
        goal = finished(directory) + chance.choice((0, 0, 1, 2))
        wait_for(
            lambda folder=directory, goal=goal: (  # type: ignore[misc]
                (folder / "run.json").exists() and finished(folder) >= goal
            ),
            search,
        )
        time.sleep(chance.uniform(0, 1.5))
        if search.poll() is not None:  # it was done before
            search.communicate()
            yield directory
            number += 1
            continue
        family = family_of(search.pid)
        search.send_signal(signal_number)
        search.communicate(timeout=60)
        wait_until_gone(family)
        sent += 1
    status, output = run_to_the_end("--resume", directory)
    assert status == 0, output
    yield directory


@pytest.mark.parametrize(
    ("signal_number", "kills"),
    [
        (signal.SIGKILL, 2),
        (signal.SIGTERM, 1),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 20, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_a_search_that_is_ended_goes_on_as_if_nothing_had_happened(
    signal_number: int,
    kills: int,
    undisturbed: Path,
    tmp_path: Path,
    row: Callable[[Row], None],
) -> None:
    for directory in end_at_random_moments(tmp_path, kills, signal_number, seed=kills):
        assert rows(directory) == rows(undisturbed)
        assert best(directory) == best(undisturbed)
    name = signal.Signals(signal_number).name
    times = f"{kills} times" if kills > 1 else "once"
    row(Row(fault=f"search gets {name} {times}", recorded="same 15 rows as undisturbed"))


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A small file system in memory (tmpfs), unmounted at the end."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if (made := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"cannot mount a small file system: {made.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return filler


def test_a_full_disk_ends_the_search_in_one_sentence_and_loses_nothing(
    undisturbed: Path, tmp_path: Path, row: Callable[[Row], None]
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        directory = disk / "run"
        search = started(*SEARCH, *EXPLORED_ONE_BY_ONE, "--out", directory)
        wait_for(lambda: finished(directory) >= 3, search)
        filler = fill(disk)
        filled_at = time.monotonic()
        output, _ = search.communicate(timeout=60)
        seconds = time.monotonic() - filled_at
        assert search.returncode == 130, output
        assert "No space left on device" in output and "continue with --resume" in output
        assert "Traceback" not in output
        kept = rows(directory)
        assert kept == rows(undisturbed)[: len(kept)] and len(kept) >= 3
        assert not list(directory.rglob("*.tmp"))
        filler.unlink()
        status, output = run_to_the_end("--resume", directory)
        assert status == 0, output
        assert rows(directory) == rows(undisturbed)
    row(Row(fault="disk full", recorded="one sentence, status 130; resumed", seconds=seconds))


def test_a_directory_that_turns_read_only_ends_the_search_in_one_sentence(
    undisturbed: Path, tmp_path: Path, row: Callable[[Row], None]
) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        directory = disk / "run"
        # Long enough for the remounting to come in between.
        search = started(*SEARCH[:-1], "150", *EXPLORED_ONE_BY_ONE, "--out", directory)
        wait_for(lambda: finished(directory) >= 3, search)
        turned_at = time.monotonic()
        remount(disk, "ro")
        output, _ = search.communicate(timeout=60)
        seconds = time.monotonic() - turned_at
        assert search.returncode == 130, output
        assert "Read-only file system" in output and "Traceback" not in output
        status, output = run_to_the_end("--resume", directory)
        assert status == 2 and output.splitlines()[-1].startswith("error: the run directory must")
        remount(disk, "rw")
        status, output = run_to_the_end("--resume", directory)
        assert status == 0, output
        explored = [row for row in rows(undisturbed) if row["purpose"] != "confirm"]
        assert rows(directory)[: len(explored)] == explored
    sentence = "one sentence, status 130; resumed"
    row(Row(fault="directory turns read-only", recorded=sentence, seconds=seconds))


def remount(disk: Path, mode: str) -> None:
    """Remount as an administrator would; retries while a file is open for writing."""
    for _ in range(200):
        done = subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], capture_output=True)
        if done.returncode == 0:
            return
        time.sleep(0.01)
    raise AssertionError(done.stderr.decode())


def test_a_truncated_file_is_named_and_its_trial_can_be_run_again(
    undisturbed: Path, tmp_path: Path, row: Callable[[Row], None]
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(undisturbed, directory)
    damaged = directory / "trials" / "0005.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    status, output = run_to_the_end("--resume", directory)
    assert status == 2 and output.startswith("error: ") and output.count("\n") == 1
    assert "0005.parquet" in output and "move it away" in output
    damaged.rename(damaged.with_suffix(".damaged"))
    status, output = run_to_the_end("--resume", directory)
    assert status == 0, output
    assert {tuple(sorted(layout_of(r).items())) for r in rows(directory)} == {
        tuple(sorted(layout_of(r).items())) for r in rows(undisturbed)
    }
    assert best(directory)["layout"] == best(undisturbed)["layout"]
    row(Row(fault="a Parquet file is truncated", recorded="refused in one sentence, status 2"))


def layout_of(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in best_columns()}


def best_columns() -> list[str]:
    from autotune.layout import LAYOUT_COLUMNS

    return list(LAYOUT_COLUMNS)


def test_a_second_search_in_the_same_directory_is_refused(
    tmp_path: Path, row: Callable[[Row], None]
) -> None:
    directory = tmp_path / "run"
    arguments = (*SEARCH, *EXPLORED_ONE_BY_ONE, "--out", directory)
    first = started(*arguments, "--max-trials", "400")
    wait_for(lambda: (directory / "run.json").exists(), first)
    started_at = time.monotonic()
    status, output = run_to_the_end("--resume", directory)
    seconds = time.monotonic() - started_at
    family = family_of(first.pid)
    assert first.poll() is None, "the first is not disturbed"
    assert status == 2 and "another search is at work" in output
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    wait_until_gone(family)
    sentence = "the second is refused, status 2"
    row(Row(fault="two searches share a directory", recorded=sentence, seconds=seconds))


def test_two_signals_at_once_still_leave_nothing(tmp_path: Path) -> None:
    """SIGINT twice (Ctrl-C pressed twice) and SIGTERM from the batch system."""
    search = started(*SEARCH, "--out", tmp_path / "run")
    wait_for(lambda: finished(tmp_path / "run") >= 1, search)
    family = family_of(search.pid)
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError):
            search.send_signal(number)
        time.sleep(0.3)
    search.communicate(timeout=60)
    assert search.returncode == 130
    wait_until_gone(family)
    assert not [p for p in psutil.process_iter() if p.pid in {f.pid for f in family}]
