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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from autotune.store.run_directory import open_run
from tests.autotune.test_run import family_of, wait_until_gone
from tests.faults.conftest import Row

pytestmark = [pytest.mark.timeout(300)]

SEARCH = ("--space", "llm13b", "--nodes", "2", "--max-trials", "12")  # without GPUs: simulated
# Columns that differ between runs: times of day and durations on this machine.
OF_THIS_RUN = {"run_id", "started_at", "finished_at", "startup_seconds"}
EXPLORED_ONE_BY_ONE = ("--search", "random", "--seed", "3")


def started(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "autotune.run",
            "--no-dashboard",
            "--no-report",
            *map(str, arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )


@contextlib.contextmanager
def suspended(process: subprocess.Popen[str]) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def run_to_the_end(*arguments: object, **environment: str) -> tuple[int, str]:
    process = started(*arguments, **environment)
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
    lines = output.splitlines()
    assert lines[0] == lines[-1] == "simulated: figures are predictions"
    assert len(rows(directory)) == 15
    return directory


def test_a_space_of_gpus_is_simulated_where_there_are_none(undisturbed: Path) -> None:
    assert best(undisturbed)["simulated"] is True
    records = open_run(undisturbed).trials()
    assert {record.trainable for record in records} == {"simulated"}
    assert all(record.measurement.final_loss is None for record in records), "nothing was trained"
    assert all(record.gpu_seconds >= 16 * 120 for record in records), "as real trials would cost"


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "the search does not get on"
        time.sleep(0.01)


def finished(directory: Path) -> int:
    return len(list(directory.glob("trials/0*.parquet")))


def end_at_random_moments(
    folder: Path, signals: Sequence[signal.Signals], seed: int
) -> Iterator[Path]:
    """Send searches the signals, resuming them; yields those that came to an end."""
    chance = random.Random(seed)
    number, sent = 0, 0
    while sent < len(signals):
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
        search.send_signal(signals[sent])
        search.communicate(timeout=60)
        wait_until_gone(family)
        sent += 1
    status, output = run_to_the_end("--resume", directory)
    assert status == 0, output
    assert str(directory) in output
    yield directory


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGKILL, signal.SIGTERM),
        pytest.param((signal.SIGINT,), marks=pytest.mark.slow),
        pytest.param((signal.SIGKILL,) * 20, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
    ids=lambda signals: f"{'-'.join(sorted({one.name for one in signals}))}-{len(signals)}",
)
def test_a_search_that_is_ended_goes_on_as_if_nothing_had_happened(
    signals: tuple[signal.Signals, ...],
    undisturbed: Path,
    odd: Path,
    row: Callable[[Row], None],
) -> None:
    for directory in end_at_random_moments(odd, signals, seed=len(signals)):
        assert rows(directory) == rows(undisturbed)
        assert best(directory) == best(undisturbed)
    names = ", then ".join(dict.fromkeys(one.name for one in signals))
    times = f" {len(signals)} times" if len(signals) > 2 else ""
    row(Row(fault=f"search gets {names}{times}", recorded="same 15 rows as undisturbed"))


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


def fill(filler: Path) -> None:
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


@pytest.mark.slow
def test_a_disk_that_takes_nothing_ends_the_search_in_one_sentence_and_loses_nothing(
    undisturbed: Path, tmp_path: Path, row: Callable[[Row], None]
) -> None:
    """It turns read-only; and when the search has been resumed, the disk is full."""
    with small_disk(tmp_path / "disk", "8m") as disk:
        directory = disk / "run"
        # Long enough for both to come in between.
        search = started(*SEARCH[:-1], "60", *EXPLORED_ONE_BY_ONE, "--out", directory)
        wait_for(lambda: finished(directory) >= 3, search)
        seconds = ended_by(search, lambda: remount(disk, "ro"), "Read-only file system")
        status, output = run_to_the_end("--resume", directory)
        assert status == 2 and output.splitlines()[-1].startswith(
            "error: --resume: the run directory must"
        )
        remount(disk, "rw")
        sentence = "one sentence, status 130; resumed"
        row(Row(fault="directory turns read-only", recorded=sentence, seconds=seconds))

        explored = [row for row in rows(undisturbed) if row["purpose"] != "confirm"]
        kept = rows(directory)
        assert len(kept) >= 3 and kept[: len(explored)] == explored[: len(kept)]
        assert not list(directory.rglob("*.tmp"))
        search = started("--resume", directory)
        wait_for(lambda: finished(directory) >= len(kept) + 3, search)
        filler = disk / "filler"
        seconds = ended_by(search, lambda: fill(filler), "No space left on device")
        assert rows(directory)[: len(kept)] == kept
        assert not list(directory.rglob("*.tmp"))
        filler.unlink()
        status, output = run_to_the_end("--resume", directory)
        assert status == 0, output
        assert rows(directory)[: len(explored)] == explored
        row(Row(fault="disk full", recorded=sentence, seconds=seconds))


def ended_by(search: subprocess.Popen[str], fault: Callable[[], object], sentence: str) -> float:
    """Seconds from the fault to the end of the search."""
    began_at = time.monotonic()
    fault()
    output, _ = search.communicate(timeout=60)
    assert search.returncode == 130, output
    assert sentence in output and "continue with --resume" in output
    assert "Traceback" not in output
    return time.monotonic() - began_at


def remount(disk: Path, mode: str) -> None:
    """Remount as an administrator would; retries while a file is open for writing."""
    for _ in range(200):
        done = subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], capture_output=True)
        if done.returncode == 0:
            return
        time.sleep(0.01)
    raise AssertionError(done.stderr.decode())


@pytest.mark.slow  # without Ray: test_bad_input.py and test_ledger.py in tests/autotune
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


@pytest.mark.parametrize(
    ("number", "trials"),
    [
        pytest.param(signal.SIGUSR1, 0, id="SIGUSR1 while Ray starts"),
        pytest.param(signal.SIGHUP, 1, id="SIGHUP in a search"),
        pytest.param(signal.SIGUSR2, 1, id="SIGUSR2 in a search", marks=pytest.mark.slow),
    ],
)
def test_a_warning_of_the_batch_system_to_all_processes_ends_the_search_in_good_order(
    number: signal.Signals, trials: int, tmp_path: Path, row: Callable[[Row], None]
) -> None:
    """Slurm sends the signal of `--signal` to every process of a job step."""
    directory = tmp_path / "run"
    search = started(*SEARCH, *EXPLORED_ONE_BY_ONE, "--max-trials", "400", "--out", directory)
    if trials:
        wait_for(lambda: finished(directory) >= trials, search)
    else:
        wait_for(lambda: bool(family_of(search.pid)), search)
    family = family_of(search.pid)
    began_at = time.monotonic()
    os.killpg(search.pid, number)
    output, _ = search.communicate(timeout=60)
    assert search.returncode == 130, output
    go_on = f"continue with --resume {directory}" if trials else "no search was begun"
    assert f"interrupted; {go_on}" in output and "Traceback" not in output
    assert "lost" not in output and "crashed" not in output
    wait_until_gone(family)
    fault = f"{number.name} to all processes of a search{'' if trials else ' while Ray starts'}"
    seconds = time.monotonic() - began_at
    row(Row(fault=fault, recorded="one sentence, status 130", seconds=seconds))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((*SEARCH, *EXPLORED_ONE_BY_ONE), id="simulated"),
        pytest.param(("--space", "tiny", "--search", "random"), id="real", marks=pytest.mark.slow),
    ],
)
def test_a_search_with_a_deadline_confirms_its_best_in_time_and_explores_further(
    arguments: tuple[str, ...], tmp_path: Path, row: Callable[[Row], None]
) -> None:
    began_at = time.monotonic()
    status, output = run_to_the_end(*arguments, "--max-trials", "1", "--out", tmp_path / "short")
    assert status in (0, 3), output
    # Start, one trial, perhaps its confirmation, and end take so long on this machine, at present.
    seconds = 2.5 * (time.monotonic() - began_at)
    directory = tmp_path / "run"
    counts = []
    for how in ((*arguments, "--max-trials", "9999", "--out"), ("--resume",)):
        began_at = time.monotonic()
        search = started(*how, directory, "--until", seconds)
        wait_for(lambda: finished(directory) > sum(counts), search)
        output, _ = search.communicate(timeout=200)
        took = time.monotonic() - began_at
        assert search.returncode == 0, output
        assert "finished: until reached (20" in output, output
        assert f"--resume {directory} explores further" in output
        assert "Traceback" not in output
        assert best(directory)["purpose"] == "confirm"
        assert best(directory)["stopped_because"].startswith("until reached (20")
        counts.append(finished(directory) - sum(counts))
    explored = [json.dumps(layout_of(r)) for r in rows(directory) if r["purpose"] != "confirm"]
    assert len(explored) == len(set(explored)) and min(counts) >= 1
    recorded = "ends in good order by then, its best confirmed; resumed"
    row(Row(fault=f"a deadline {seconds:.0f} s after the start", recorded=recorded, seconds=took))


def test_a_deadline_before_the_first_trial_is_resumable(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    end = str(int(time.time()) + 61)  # the default is a minute before it
    status, output = run_to_the_end(*SEARCH, "--out", directory, SLURM_JOB_END_TIME=end)
    assert status == 130, output
    assert "60 s before the end of the Slurm job" in output
    assert f"continue with --resume {directory}" in output and finished(directory) == 0


def test_under_nohup_a_search_outlives_its_terminal(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        search = started(*SEARCH, *EXPLORED_ONE_BY_ONE, "--out", directory)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(lambda: finished(directory) >= 1, search)
    os.killpg(search.pid, signal.SIGHUP)
    output, _ = search.communicate(timeout=100)
    assert search.returncode == 0 and len(rows(directory)) == 15, output


def test_a_second_search_is_refused_and_signals_at_once_leave_nothing_of_the_first(
    tmp_path: Path, row: Callable[[Row], None]
) -> None:
    """An impatient person presses Ctrl-C twice, and the batch system sends SIGTERM as well."""
    directory = tmp_path / "run"
    arguments = (*SEARCH, *EXPLORED_ONE_BY_ONE, "--out", directory)
    first = started(*arguments, "--max-trials", "400")
    wait_for(lambda: finished(directory) >= 1, first)
    started_at = time.monotonic()
    status, output = run_to_the_end("--resume", directory)
    seconds = time.monotonic() - started_at
    family = family_of(first.pid)
    assert first.poll() is None, "the first is not disturbed"
    assert status == 2 and "another search is at work" in output
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: all processes of the search get it
    for number in (signal.SIGINT, signal.SIGTERM):
        time.sleep(0.3)
        with contextlib.suppress(ProcessLookupError):
            first.send_signal(number)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130, output
    assert "continue with --resume" in output and "Traceback" not in output
    wait_until_gone(family)
    assert not [p for p in psutil.process_iter() if p.pid in {f.pid for f in family}]
    sentence = "the second is refused, status 2"
    row(Row(fault="two searches share a directory", recorded=sentence, seconds=seconds))


def test_a_search_never_takes_over_the_run_of_another(
    tmp_path: Path, row: Callable[[Row], None]
) -> None:
    """Two are started at once with one --out; each has another model and another seed."""
    directory = tmp_path / "run"
    searches = [
        started("--space", space, "--nodes", "2", *EXPLORED_ONE_BY_ONE, "--out", directory)
        for space in ("llm13b", "llm65b")
    ]
    outputs = [search.communicate(timeout=120)[0] for search in searches]
    statuses = [search.returncode for search in searches]
    assert sorted(statuses) == [0, 2], outputs
    refused = outputs[statuses.index(2)]
    assert refused.count("error: ") == 1 and "another search is at work" in refused
    winner = ("llm13b", "llm65b")[statuses.index(0)]
    assert open_run(directory).request.space.name == winner
    # Started when the first has finished: a plain refusal, and nothing is written.
    before = contents(directory)
    status, output = run_to_the_end("--space", "llm65b", "--out", directory)
    assert status == 2 and "--out: " in output and "already holds a run" in output
    assert contents(directory) == before
    sentence = "one runs, the other is refused, status 2"
    row(Row(fault="two searches are started with one --out", recorded=sentence))


@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "replaced"])
def test_a_run_directory_that_is_moved_away_ends_the_search(
    replaced: bool, undisturbed: Path, tmp_path: Path, row: Callable[[Row], None]
) -> None:
    directory = tmp_path / "run"
    search = started(*SEARCH, *EXPLORED_ONE_BY_ONE, "--out", directory, "--max-trials", "400")
    wait_for(lambda: finished(directory) >= 2, search)
    family = family_of(search.pid)
    if replaced:
        shutil.copytree(undisturbed, tmp_path / "other")
    with suspended(search):  # between the two renames it would find no directory at all
        directory.rename(tmp_path / "moved")
        if replaced:
            (tmp_path / "other").rename(directory)
    before = contents(directory)
    moved_at = time.monotonic()
    output, _ = search.communicate(timeout=60)
    seconds = time.monotonic() - moved_at
    wait_until_gone(family)
    assert search.returncode == (2 if replaced else 130), output
    said = "must stay that of this search, got another run" if replaced else "is gone: it was moved"
    assert output.count("error: ") == 1 and said in output and "Traceback" not in output
    assert contents(directory) == before and directory.exists() == replaced
    status, output = run_to_the_end("--resume", tmp_path / "moved", "--dry-run")
    assert status == 0, output
    recorded = f"one sentence, status {search.returncode}"
    what = "another run is moved to its place" if replaced else "the run directory is moved away"
    row(Row(fault=what, recorded=recorded, seconds=seconds))


def contents(directory: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
