"""What experiment trackers have of a search, read back by their own readers."""

import json
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import InputError
from autotune.ledger.ledger import Ledger
from autotune.ledger.listeners import Listeners
from autotune.loggers import LOGGERS, loggers, loggers_named
from autotune.place import Place
from autotune.store.record import TrialRecord
from autotune.store.run_directory import open_run
from autotune.trial.trial import Outcome, StepReport, TrialSpec
from tests.autotune.simulate import new_store, run_one
from tests.faults.test_driver import fill, small_disk
from trainables.fake import FakeTrainable

NOT_MEASURED = {"mfu", "hardware_flops_utilisation"}
"""On CPUs."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield


def logged_search(
    directory: Path, name: str, *, trials: int = 3, log_directory: Path | None = None
) -> tuple[Ledger, list[str]]:
    """Some trials, and one more that is cut short after its first step."""
    warnings: list[str] = []
    store = new_store(directory, max_trials=9, search="grid", stop_factor=1.1)
    listeners = Listeners(*loggers([name], warnings.append))
    ledger = Ledger(store, listeners)
    listeners.search_begins(store.request, log_directory or directory, ledger.records)
    for number in range(trials + 1):
        spec = ledger.next_trial()
        assert spec is not None
        if number == 0:  # an attempt whose figures are discarded
            ledger.step_done(spec.trial_id, first_step(spec))
            ledger.attempt_lost(spec.trial_id, "its node is gone")
        if number == trials:
            ledger.step_done(spec.trial_id, first_step(spec))
        else:
            run_one(ledger, FakeTrainable(largest_micro_batch=2), spec)
    listeners.search_ends()
    return ledger, warnings


def first_step(spec: TrialSpec) -> StepReport:
    step = next(FakeTrainable(largest_micro_batch=99).run(spec, []))
    assert isinstance(step, StepReport)
    return step


def figures_of(record: TrialRecord) -> dict[str, float]:
    """What must be logged of the whole trial."""
    row = record.row()
    names = ("step_seconds", "peak_memory_gib", "final_loss", "gpu_seconds")
    return {f"trial/{name}": row[name] for name in names if row[name] is not None}


def test_tensorboard(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    ledger, warnings = logged_search(tmp_path, "tensorboard")
    assert warnings == []
    folders = sorted(folder.name for folder in (tmp_path / "tensorboard").iterdir())
    assert folders == ["0001", "0002", "0003", "0004"]
    for record in ledger.records:
        events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard" / record.trial_id))
        events.Reload()
        scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        for name, value in figures_of(record).items():
            assert [event.value for event in scalars[name]] == [pytest.approx(value)]
        steps = [event.step for event in scalars.get("step/step_seconds", [])]
        assert steps == list(range(len(steps))), "an earlier attempt is replaced"
        assert not NOT_MEASURED & {tag.partition("/")[2] for tag in scalars}
        hparams = events.summary_metadata
        assert "_hparams_/session_start_info" in hparams
        written = hparams["_hparams_/session_start_info"].plugin_data.content
        assert record.outcome.value.encode() in written and b"tensor_parallel" in written


def test_mlflow(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    ledger, warnings = logged_search(tmp_path, "mlflow")
    assert warnings == []
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("autotune tiny")
    runs = {}
    for run in client.search_runs([experiment.experiment_id]):
        runs.setdefault(run.info.run_name.split()[0], []).append(run)
    assert sorted(runs) == ["0001", "0002", "0003", "0004"]
    assert [run.info.status for run in runs["0004"]] == ["KILLED"]
    assert sorted(run.info.status for run in runs["0001"]) == ["FINISHED", "KILLED"]
    for record in ledger.records:
        run = next(run for run in runs[record.trial_id] if run.info.status != "KILLED")
        ran = record.outcome in (Outcome.OK, Outcome.STOPPED)
        assert run.info.status == ("FINISHED" if ran else "FAILED")
        assert run.data.tags["outcome"] == record.outcome and run.data.tags["purpose"] == "explore"
        columns = {name: str(value) for name, value in record.layout.columns().items()}
        assert columns.items() <= run.data.params.items()
        assert run.data.params["simulated"] == "True" and run.data.params["trainable"] == "fake"
        assert figures_of(record).items() <= run.data.metrics.items()
        assert not NOT_MEASURED & {name.partition("/")[2] for name in run.data.metrics}
        if ran:
            history = client.get_metric_history(run.info.run_id, "step/step_seconds")
            assert [metric.step for metric in history] == list(range(len(history)))


def test_wandb(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from tests.autotune.loggers.wandb_file import records_in

    ledger, warnings = logged_search(tmp_path, "wandb")
    assert warnings == []
    found: dict[str, list[dict[str, Any]]] = {}
    for file in (tmp_path / "wandb").glob("offline-run-*/*.wandb"):
        name, code = "", None
        config: dict[str, Any] = {}
        summary: dict[str, Any] = {}
        steps: list[dict[str, Any]] = []
        for record in records_in(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name
                config |= _items(record.run.config.update)
            elif kind == "history":
                steps.append(_items(record.history.item))
            elif kind == "summary":
                summary |= _items(record.summary.update)
            elif kind == "exit":
                code = record.exit.exit_code
        read = {"config": config, "summary": summary, "steps": steps, "code": code}
        found.setdefault(name.split()[0], []).append(read)
    assert sorted(found) == ["0001", "0002", "0003", "0004"] and len(found["0001"]) == 2
    for record in ledger.records:
        run = next(run for run in found[record.trial_id] if "outcome" in run["summary"])
        assert record.layout.columns().items() <= run["config"].items()
        assert run["config"]["simulated"] is True
        assert run["summary"]["outcome"] == record.outcome
        assert figures_of(record).items() <= run["summary"].items()
        ran = record.outcome in (Outcome.OK, Outcome.STOPPED)
        assert (run["code"] == 0) == ran and bool(run["steps"]) == ran
        assert [step["_step"] for step in run["steps"]] == list(range(len(run["steps"])))
        assert all("step/step_seconds" in step for step in run["steps"])


def _items(items: Iterable[Any]) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


@pytest.mark.parametrize("name", LOGGERS)
def test_what_is_not_installed_is_said_before_anything_starts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, LOGGERS[name].module, None)
    needs = f"^log: {name} needs a package that is not installed: pip install "
    with pytest.raises(InputError, match=needs + LOGGERS[name].package):
        Place(log=["tensorboard,mlflow,wandb"])


def test_names_are_given_one_by_one_or_together() -> None:
    assert [*loggers_named(["mlflow,tensorboard", "mlflow"])] == ["mlflow", "tensorboard"]
    assert [*loggers_named("mlflow")] == ["mlflow"] and loggers_named(()) == {}
    with pytest.raises(InputError, match=r"^log must be among tensorboard, .*, got 'mlflow,x'"):
        Place(log=("mlflow,x",))


@pytest.mark.parametrize("name", LOGGERS)
def test_a_log_that_cannot_be_written_is_a_warning(name: str, tmp_path: Path) -> None:
    folder = {"tensorboard": "tensorboard", "mlflow": "mlruns", "wandb": "wandb"}[name]
    (tmp_path / folder).write_text("in the way")
    ledger, warnings = logged_search(tmp_path, name)
    assert len(ledger.records) == 3
    (warning,) = warnings
    assert warning.startswith(f"{name} failed, the search goes on without it: ")


def test_a_server_that_does_not_answer_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ledger, warnings = logged_search(tmp_path, "mlflow")
    assert len(ledger.records) == 3 and not (tmp_path / "mlruns").exists()
    (warning,) = warnings
    assert warning.startswith("mlflow failed, the search goes on without it: ")


# Python complains of what is left in a file's buffer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_full_disk_is_a_warning(name: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        fill(disk / "filler")
        ledger, warnings = logged_search(tmp_path / "run", name, log_directory=disk)
    assert len(ledger.records) == 3
    (warning,) = warnings
    assert "No space left on device" in warning
    store = open_run(tmp_path / "run")
    assert len(store.trials()) == 3


@pytest.mark.parametrize("name", LOGGERS)
def test_a_run_with_logs_can_be_resumed(name: str, tmp_path: Path) -> None:
    """wandb keeps links that lead out of the directory; nothing in these folders is read."""
    logged_search(tmp_path, name, trials=1)
    (tmp_path / {"mlflow": "mlruns"}.get(name, name) / "inside").mkdir()
    (tmp_path / {"mlflow": "mlruns"}.get(name, name) / "inside" / "link").symlink_to("/etc")
    assert len(open_run(tmp_path).trials()) == 1
