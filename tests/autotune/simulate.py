"""Run a ledger to its end without Ray, with the fake trainable."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from autotune.ledger.ledger import Ledger
from autotune.named_spaces import load_space
from autotune.request import Request
from autotune.space import SearchSpace
from autotune.store.files import BLANK_DIGEST, DIGEST, sealed
from autotune.store.record import TrialRecord
from autotune.store.run_directory import RunStore, create_run
from autotune.trial.registry import register
from autotune.trial.trainable import Trainable
from autotune.trial.trial import StepReport, TrialSpec
from trainables.fake import DESCRIPTION, FakeTrainable

register(DESCRIPTION)


class Silent:
    """A listener that shows nothing."""

    def search_begins(
        self, request: Request, directory: Path, finished: Sequence[TrialRecord]
    ) -> None: ...

    def trial_started(self, spec: TrialSpec) -> None: ...

    def step_done(self, spec: TrialSpec, step: StepReport) -> None: ...

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None: ...

    def trial_finished(self, record: TrialRecord) -> None: ...

    def search_ends(self) -> None: ...


def fake_request(**changes: object) -> Request:
    space: SearchSpace = load_space("tiny")
    return Request(
        **{
            "space": space,
            "trainable": "fake",
            "search": "random",
            "max_trials": 20,
            "stop_factor": 1.3,
            **changes,
        }
    )


def new_store(directory: Path, **changes: object) -> RunStore:
    return create_run(directory, fake_request(**changes))


def run_to_the_end(
    store: RunStore, *, trials: int | None = None, worker: Trainable | None = None
) -> Ledger:
    """At most `trials` more; then as if the process had been killed."""
    ledger = Ledger(store, Silent())
    worker = worker or FakeTrainable()
    while trials is None or trials > 0:
        spec = ledger.next_trial()
        if spec is None:
            break
        run_one(ledger, worker, spec)
        trials = None if trials is None else trials - 1
    return ledger


def run_one(ledger: Ledger, worker: Trainable, spec: TrialSpec) -> None:
    for event in worker.run(spec, []):
        if isinstance(event, StepReport):
            if ledger.step_done(spec.trial_id, event):
                ledger.trial_stopped(spec.trial_id)
                return
        else:
            ledger.trial_ended(spec.trial_id, event)


def rewrite_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file of a run, with a digest that matches."""
    content = json.loads(file.read_text())
    change(content)
    file.write_bytes(sealed(json.dumps({**content, DIGEST: BLANK_DIGEST}).encode()))


def without_digests(directory: Path) -> None:
    """Turn a run into one as version 0.1 wrote it: without digests and the run's id."""
    file = directory / "run.json"
    content = json.loads(file.read_text())
    del content["run_id"], content["sha256"]
    file.write_text(json.dumps({**content, "schema_version": 1}))
    for file in directory.rglob("*.parquet"):
        table = pq.read_table(file).drop_columns(["run_id"])
        pq.write_table(table.replace_schema_metadata(None), file)
    if (best := directory / "best.json").exists():
        content = json.loads(best.read_text())
        del content["sha256"]
        best.write_text(json.dumps(content))
