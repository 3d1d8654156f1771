"""The run directory: what is written is read back, and a crash tears nothing."""

import datetime
import json
import multiprocessing
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.layout import LAYOUT_COLUMNS
from autotune.named_spaces import load_space
from autotune.search import Pruned
from autotune.store.files import write_atomically
from autotune.store.lock import new_directory, sole_user
from autotune.store.record import TRIAL_SCHEMA, TrialRecord
from autotune.store.run_directory import create_run, open_run
from autotune.trial.measurement import Measurement
from autotune.trial.trial import Outcome
from tests.autotune.simulate import fake_request, new_store, run_to_the_end
from tests.conftest import examples

maybe = st.none() | st.floats(1e-9, 1e9)
share = st.none() | st.floats(0, 1)
instants = st.datetimes(timezones=st.just(datetime.UTC))
records = st.builds(
    TrialRecord,
    trial_id=st.integers(1, 9999).map("{:04d}".format),
    trainable=st.just("fake"),
    purpose=st.sampled_from(["explore", "reduced", "confirm"]),
    layout=st.sampled_from(load_space("tiny").layouts()),
    outcome=st.sampled_from(Outcome),
    reason=st.text(),
    measurement=st.builds(
        Measurement,
        measured_steps=st.integers(0, 99),
        measured_micro_batches=st.lists(st.integers(1, 4096), max_size=2).map(tuple),
        step_seconds=st.floats(1e-9, 1e9),
        step_seconds_iqr=maybe,
        tokens_per_second_per_gpu=maybe,
        mfu=share,
        hardware_flops_utilisation=share,
        peak_memory_gib=maybe,
        final_loss=maybe,
    ),
    startup_seconds=maybe,
    gpu_seconds=st.floats(0, 1e12),
    attempts=st.integers(1, 3),
    started_at=instants,
    finished_at=instants,
)


@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=records)
def test_a_stored_trial_reads_back_equal(tmp_path: Path, record: TrialRecord) -> None:
    store = new_store(Path(tempfile.mkdtemp(dir=tmp_path)))
    store.add_trial(record, [])
    assert open_run(store.directory).trials() == [record]


def test_columns_are_those_of_the_design() -> None:
    expected = {
        *LAYOUT_COLUMNS,
        "trial_id",
        "trainable",
        "purpose",
        "world_size",
        "outcome",
        "reason",
        "step_seconds",
        "step_seconds_iqr",
        "tokens_per_second_per_gpu",
        "mfu",
        "hardware_flops_utilisation",
        "peak_memory_gib",
        "final_loss",
        "predicted_step_seconds",
        "predicted_peak_memory_gib",
        "predicted_fit_probability",
        "measured_steps",
        "measured_data_parallel",
        "gpu_seconds",
        "attempts",
        "started_at",
        "finished_at",
    }
    assert expected <= set(TRIAL_SCHEMA.names)


def test_request_reads_back_equal_and_files_are_parquet(tmp_path: Path) -> None:
    store = new_store(tmp_path, env={"A": "ü b"}, search="grid")
    run_to_the_end(store, trials=3)
    assert open_run(tmp_path).request == store.request
    stored = pq.read_table(tmp_path / "trials" / "0001.parquet")
    assert stored.schema.names == TRIAL_SCHEMA.names and stored.schema.types == TRIAL_SCHEMA.types
    assert set(stored["run_id"].to_pylist()) == {store.run_id}
    steps = pq.read_table(tmp_path / "steps" / "0001.parquet").to_pylist()
    assert {row["rank"] for row in steps} == {0, 1, 2, 3}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    file.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["best.json"]
    assert file.read_text() == "old"


def test_temporary_files_of_a_crash_are_no_trials(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    run_to_the_end(store, trials=2)
    (tmp_path / "trials" / ".0003.parquet.77.tmp").write_bytes(b"torn")
    assert len(open_run(tmp_path).trials()) == 2


def _hold(directory: Path, ready, done) -> None:
    with sole_user(directory):
        ready.set()
        done.wait(30)


def test_a_second_search_in_the_directory_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, done))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(InputError, match="another search is at work"), sole_user(tmp_path):
            pass
    finally:
        done.set()
        other.join()
    with sole_user(tmp_path):
        pass


def test_bad_run_directories_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json is missing"):
        open_run(tmp_path)
    new_store(tmp_path)
    with pytest.raises(InputError, match="already holds a run"), new_directory(tmp_path):
        pass
    with pytest.raises(InputError, match="already holds a run"):
        create_run(tmp_path, open_run(tmp_path).request)
    file = tmp_path / "run.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "sha256": None, "schema_version": 99}))
    with pytest.raises(InputError, match="schema_version must be 1 or 2, got 99"):
        open_run(tmp_path)
    file.write_text("{")
    with pytest.raises(InputError, match="cannot read"):
        open_run(tmp_path)


def test_a_new_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out, sentence in (
        (tmp_path / "file", "must be a new directory, got .* is a file"),
        (tmp_path / "file" / "x", "must be a new directory, got .* is a file"),
        (tmp_path / "broken", "must not lead through a broken symbolic link"),
        (tmp_path / "loop", "must not lead through a broken symbolic link"),
        (tmp_path / "loop" / "x", "must not lead through a broken symbolic link"),
        (tmp_path, "must be empty or new"),
        (Path("/proc/new"), "must be below a writable directory"),
        (Path("/dev/null/new"), "must be a new directory, got .* is a device"),
    ):
        with pytest.raises(InputError, match=sentence), new_directory(out):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"file", "broken", "loop"}


def test_a_directory_in_which_no_run_began_is_removed_again(tmp_path: Path) -> None:
    with new_directory(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert not list(tmp_path.iterdir())
    with new_directory(tmp_path / "a" / "b"):
        create_run(tmp_path / "a" / "b", fake_request())
    assert open_run(tmp_path / "a" / "b").trials() == []
    (tmp_path / "mine").mkdir()
    with new_directory(tmp_path / "mine"):
        pass
    assert not list((tmp_path / "mine").iterdir())


def test_the_list_of_pruned_layouts_may_grow_shrink_and_change(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    items = [Pruned(layout=a, reason=f"{n}") for n, a in enumerate(fake_request().all_layouts())]
    for pruned in (items[:2], items[:2], items[:5], items[:1], [], items[3:6], items[2:7]):
        store.write_pruned(pruned)
        assert store.pruned() == pruned
