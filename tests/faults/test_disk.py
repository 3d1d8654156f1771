"""A full and a read-only disk, for the run directory alone; test_driver.py has whole searches."""

from pathlib import Path

import pytest

from autotune.errors import RunDirectoryFailed
from autotune.ledger.ledger import Ledger
from autotune.store.run_directory import open_run
from tests.autotune.simulate import Silent, new_store, run_one, run_to_the_end
from tests.faults.test_driver import fill, remount, small_disk
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
