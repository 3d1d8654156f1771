"""Files of a run that were damaged, changed, or come from somewhere else."""

import dataclasses
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autotune.errors import InputError, RunDirectoryFailed, RunDirectoryReplaced
from autotune.ledger.ledger import Ledger
from autotune.named_spaces import load_space
from autotune.store.files import remove_temporary_files
from autotune.store.results import load
from autotune.store.run_directory import open_run
from tests.autotune.simulate import Silent, new_store, run_to_the_end, without_digests
from tests.conftest import scaled
from trainables.fake import FakeTrainable

FLIPS = scaled(600)
TRIALS = 6


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run_to_the_end(new_store(tmp_path / "run", search="grid"), trials=TRIALS)
    return tmp_path / "run"


def everything(directory: Path) -> tuple[Any, ...]:
    """All that is read of a run: by a resumed search, and by `load`."""
    store, found = open_run(directory), load(directory)
    tables = [table.to_pylist() for table in (found.trials, found.steps, found.pruned)]
    return (store.request, store.nodes, store.trials(), store.pruned(), found.best, *tables)


def test_no_flipped_bit_is_read_as_something_else(run: Path) -> None:
    """In every file: it is refused in one sentence that names the file, or changes nothing."""
    before = everything(run)
    chance = random.Random(0)
    files = [file for file in sorted(run.rglob("*")) if file.suffix in (".json", ".parquet")]
    assert {file.parent.name for file in files} == {"run", "trials", "steps"}
    refused = 0
    for number in range(FLIPS):
        file = files[number % len(files)]
        intact = file.read_bytes()
        damaged = bytearray(intact)
        damaged[chance.randrange(len(intact))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            assert everything(run) == before, f"{file} is read, and says something else"
        except InputError as error:
            refused += 1
            assert file.name in str(error) and "\n" not in str(error) and len(str(error)) < 400
        file.write_bytes(intact)
    assert refused > FLIPS * 0.9
    assert everything(run) == before


def test_a_file_that_is_cut_off_or_empty_is_refused(run: Path) -> None:
    for file in sorted(run.rglob("*.*")):
        intact = file.read_bytes()
        for length in (0, 1, 7, len(intact) // 2, len(intact) - 1):
            file.write_bytes(intact[:length])
            with pytest.raises(InputError, match=file.name):
                everything(run)
        file.write_bytes(intact)


def test_files_of_another_run_are_refused(run: Path, tmp_path: Path) -> None:
    """Although each is whole: another search had other measurements."""
    run_to_the_end(new_store(tmp_path / "other", search="random"), trials=TRIALS)
    of_a_trial_of_the_run = "must have the layout and step time of a trial of the run"
    for name, sentence in (
        ("trials/0002.parquet", "run_id must be that of the run"),
        ("steps/0002.parquet", "run_id must be that of the run"),
        ("pruned.parquet", "run_id must be that of the run"),
        ("best.json", of_a_trial_of_the_run),
    ):
        intact = (run / name).read_bytes()
        shutil.copy(tmp_path / "other" / name, run / name)
        with pytest.raises(InputError, match=sentence):
            everything(run)
        (run / name).write_bytes(intact)
    shutil.copy(tmp_path / "other" / "trials" / "0002.parquet", run / "trials" / "0099.parquet")
    with pytest.raises(InputError, match="run_id must be that of the run"):
        open_run(run).trials()


def rewrite(directory: Path, number: str = "0003", /, **values: Any) -> None:
    """Change columns of a stored trial of a run without digests."""
    file = directory / "trials" / f"{number}.parquet"
    table = pq.read_table(file)
    row = {**table.to_pylist()[0], **values}
    nullable = pa.schema([field.with_nullable(True) for field in table.schema])
    pq.write_table(pa.Table.from_pylist([row], schema=nullable), file)


WRONG_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "no step time": ({"step_seconds": None}, "step_seconds must be measured"),
    "negative step time": ({"step_seconds": -1.0}, "step_seconds must be at least"),
    "step time of zero": ({"step_seconds": 0.0}, "step_seconds must be at least"),
    "step time of NaN": ({"step_seconds": math.nan}, "step_seconds must be finite, got nan"),
    "infinite step time": ({"step_seconds": math.inf}, "step_seconds must be finite, got inf"),
    "MFU above 1": ({"mfu": 1.5}, "mfu must be at most 1, got 1.5"),
    "negative memory": ({"peak_memory_gib": -2.0}, "peak_memory_gib must be at least 0"),
    "negative GPU time": ({"gpu_seconds": -1.0}, "gpu_seconds must be greater than or equal to 0"),
    "endless GPU time": ({"gpu_seconds": math.inf}, "gpu_seconds must be a finite number"),
    "no attempt": ({"attempts": 0}, "attempts must be greater than or equal to 1"),
    "unknown outcome": ({"outcome": "great"}, "outcome must be"),
    "unknown purpose": ({"purpose": "fun"}, "purpose must be"),
    "no outcome": ({"outcome": None}, "outcome must be"),
    "another trainable": ({"trainable": "deepspeed"}, "trainable must be fake, got deepspeed"),
    "wrong world size": ({"world_size": 7}, "world_size must be that of the layout, got 7"),
    "another trial's number": ({"trial_id": "0009"}, "must hold the one row of trial 0003"),
    "a number of 5,000 digits": ({"trial_id": "1" * 5000}, "trial_id must match"),
    "a number that is a path": ({"trial_id": "../3"}, "trial_id must match"),
    "layout outside the space": ({"micro_batch_size": 64}, "its layout must be of the search"),
    "impossible layout": ({"tensor_parallel": 0}, "tensor_parallel must be greater than"),
    "zero of no stage": ({"zero_stage": 9}, "zero_stage must be"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_rows_that_no_trial_can_give_are_refused(run: Path, case: str) -> None:
    values, sentence = WRONG_VALUES[case]
    without_digests(run)
    record = open_run(run).trials()[2]
    assert record.outcome == "ok", "the row to change is of a trial that worked"
    rewrite(run, **values)
    with pytest.raises(InputError, match=sentence) as refused:
        open_run(run).trials()
    assert "0003.parquet" in str(refused.value) and len(str(refused.value)) < 500


def test_a_trial_that_repeats_another_is_refused(run: Path) -> None:
    without_digests(run)
    third = open_run(run).trials()[2]
    rewrite(run, "0005", **third.layout.columns(), world_size=third.layout.world_size)
    rewrite(run, "0005", measured_data_parallel=third.layout.data_parallel)
    with pytest.raises(InputError, match="must be new, got that which trial 0003 explores"):
        open_run(run).trials()


def test_two_rows_in_the_file_of_a_trial_are_refused(run: Path) -> None:
    without_digests(run)
    file = run / "trials" / "0003.parquet"
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table]), file)
    with pytest.raises(InputError, match="must hold the one row of trial 0003"):
        open_run(run).trials()


def test_figures_that_a_trial_did_not_measure_may_be_anything(tmp_path: Path) -> None:
    """A NaN in a trial that is invalid is on record, and does not hinder the resumed search."""

    class Diverging(FakeTrainable):
        def run(self, spec, hosts):
            for event in super().run(spec, hosts):
                if hasattr(event, "ranks"):
                    ranks = (dataclasses.replace(r, step_seconds=math.nan) for r in event.ranks)
                    event = dataclasses.replace(event, ranks=tuple(ranks))
                yield event

    run_to_the_end(new_store(tmp_path, search="grid"), trials=1, worker=Diverging())
    (record,) = open_run(tmp_path).trials()
    assert record.outcome == "invalid" and record.reason == "step_seconds must be finite, got nan"
    assert load(tmp_path).best is None


def linked(directory: Path, name: str, target: Path) -> None:
    entry = directory / name
    if entry.is_dir():
        shutil.copytree(entry, target)
        shutil.rmtree(entry)
    else:
        target.write_bytes(entry.read_bytes() if entry.exists() else b"")
        entry.unlink(missing_ok=True)
    entry.symlink_to(target)


@pytest.mark.parametrize(
    "name",
    ["trials", "steps", "logs", "trials/0001.parquet", "best.json", "run.json", ".lock", "export"],
)
def test_a_link_that_leads_out_of_the_directory_is_refused(
    run: Path, tmp_path: Path, name: str
) -> None:
    (run / "export").mkdir()
    linked(run, name, tmp_path / "outside")
    with pytest.raises(InputError, match="must not be a link that leads out of the run directory"):
        open_run(run)


def test_a_link_within_the_directory_and_to_it_is_followed(run: Path, tmp_path: Path) -> None:
    linked(run, "logs", run / "real-logs")
    (tmp_path / "link").symlink_to(run)
    assert len(open_run(tmp_path / "link").trials()) == TRIALS


def test_a_named_pipe_is_refused_rather_than_waited_for(run: Path) -> None:
    os.mkfifo(run / "trials" / "0099.parquet")
    with pytest.raises(InputError, match=r"0099\.parquet' must be a file or a folder"):
        open_run(run)


@pytest.mark.parametrize("moment", ["before a trial", "at a step", "at the end of a trial"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_directory_that_goes_away_ends_the_search(
    run: Path, tmp_path: Path, moment: str, replaced: bool
) -> None:
    ledger = Ledger(open_run(run), Silent())
    spec = None if moment == "before a trial" else ledger.next_trial()
    if moment == "at the end of a trial":
        assert spec is not None
        events = list(FakeTrainable().run(spec, []))
        for step in events[:-1]:
            ledger.step_done(spec.trial_id, step)
    run.rename(tmp_path / "moved")
    if replaced:
        run_to_the_end(new_store(run), trials=1)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    error = RunDirectoryReplaced if replaced else RunDirectoryFailed
    with pytest.raises(error, match="got another run" if replaced else "is gone"):
        if spec is None:
            ledger.next_trial()
        elif moment == "at a step":
            ledger.step_done(spec.trial_id, next(FakeTrainable().run(spec, [])))
        else:
            ledger.trial_ended(spec.trial_id, events[-1])
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before
    assert run.exists() == replaced


def test_temporary_files_of_a_killed_search_are_removed(run: Path) -> None:
    left = [run / ".best.json.77.tmp", run / "trials" / ".0003.parquet.77.tmp"]
    for file in left:
        file.write_bytes(b"torn")
    kept = {file for file in run.rglob("*") if file not in left}
    remove_temporary_files(run)
    assert set(run.rglob("*")) == kept


def test_a_json_file_that_was_edited_is_refused(run: Path) -> None:
    edits: list[Callable[[dict[str, Any]], object]] = [
        lambda content: content.update(more=1),
        lambda content: content.pop("sha256"),
        lambda content: content.update(sha256="0" * 64),
        lambda content: content.pop("request", content.pop("layout", None)),
    ]
    for file in (run / "run.json", run / "best.json"):
        intact = file.read_text()
        for edit in edits:
            content = json.loads(intact)
            edit(content)
            file.write_text(json.dumps(content, indent=2) + "\n")
            with pytest.raises(InputError, match=rf"{file.name}.*changed or damaged"):
                everything(run)
        file.write_text(intact)
    assert load(run).request.space == load_space("tiny")
