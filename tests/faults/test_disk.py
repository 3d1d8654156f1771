"""A full and a read-only disk, for the run directory alone; test_driver.py has whole searches."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.errors import RunDirectoryFailed
from autotune.ledger.ledger import Ledger
from autotune.store.run_directory import open_run
from tests.autotune.simulate import Silent, new_store, run_one, run_to_the_end
from tests.faults.conftest import Row
from tests.faults.test_driver import (
    fill,
    finished,
    remount,
    small_disk,
    started,
    wait_for,
)
from tests.faults.test_driver import (
    run_to_the_end as search_to_the_end,
)
from trainables.fake import FakeTrainable


def test_a_disk_that_takes_nothing_leaves_whole_files_only(tmp_path: Path) -> None:
    """Without Ray: what is on record stays, nothing is half-written, and the search goes on."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = new_store(disk / "run", trainable="simulated", search="grid")
        run_to_the_end(store, trials=3)
        filler = disk / "filler"
        for fault, mend in (
            (lambda: fill(filler), filler.unlink),
            (lambda: remount(disk, "ro"), lambda: remount(disk, "rw")),
        ):
            ledger = Ledger(open_run(store.directory), Silent())
            spec = ledger.next_trial()
            assert spec is not None
            before = {file: file.read_bytes() for file in (disk / "run").rglob("*.parquet")}
            fault()
            with pytest.raises(RunDirectoryFailed, match=r"No space left|Read-only file system"):
                run_one(ledger, FakeTrainable(), spec)
            after = {file: file.read_bytes() for file in (disk / "run").rglob("*.parquet")}
            steps = disk / "run" / "steps" / f"{spec.trial_id}.parquet"
            assert before.items() <= after.items() and after.keys() - before.keys() <= {steps}
            mend()
            assert not list((disk / "run").rglob("*.tmp"))
        ledger = run_to_the_end(open_run(store.directory), trials=2)
        assert [record.trial_id for record in ledger.records] == [f"000{n}" for n in range(1, 6)]


SIMULATED = ("--space", "llm13b", "--nodes", "2", "--search", "random", "--max-trials", "300")


def test_a_full_temporary_folder_ends_a_search_in_one_sentence_or_not_at_all(
    tmp_path: Path, row: Callable[[Row], None]
) -> None:
    """Without room for files the search goes on; without room for folders it cannot."""
    directory = tmp_path / "run"
    with (
        tempfile.TemporaryDirectory() as short,  # Ray's sockets are in it
        small_disk(Path(short, "tmp"), "100m,nr_inodes=2000") as disk,
    ):
        search = started(*SIMULATED, "--out", directory, TMPDIR=str(disk))
        wait_for(lambda: finished(directory) >= 2, search)
        fill(disk / "filler")
        goal = finished(directory) + 20
        wait_for(lambda: finished(directory) >= goal, search)
        assert search.poll() is None, "it goes on"
        for number in range(2000):
            try:
                (disk / f"filler-{number}").touch()
            except OSError:
                break
        output, _ = search.communicate(timeout=60)
        assert search.returncode == 130, output
        last = output.splitlines()[-1]
        assert last.startswith("temporary files cannot be written any more: [Errno 28]"), output
        assert last.endswith(f"; continue with --resume {directory}"), output
        assert "Traceback" not in output
        status, output = search_to_the_end("--resume", directory, TMPDIR=str(disk))
        assert status == 2 and output.splitlines()[-1].startswith("error: the temporary folder")
    status, output = search_to_the_end("--resume", directory, "--gpu-hours", "0.001")
    assert status == 0, output
    row(Row(fault="temporary folder full", recorded="one sentence, status 130; resumed"))
