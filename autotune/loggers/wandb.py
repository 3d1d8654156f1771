"""Logs trials to Weights & Biases; WANDB_MODE=offline keeps them in files."""

import os
from collections.abc import Mapping
from pathlib import Path

import wandb

from autotune.loggers.tracker import Parameter
from autotune.store.record import TrialRecord
from autotune.trial.trial import Outcome

_RAN = (Outcome.OK, Outcome.STOPPED)


class Wandb:
    """Runs of the project ``autotune``, or of WANDB_PROJECT, in a group per search. A `Tracker`."""

    def open(self, space: str, directory: Path) -> None:
        self._directory = directory
        self._group = f"{space} {directory}"

    def begin(self, name: str, parameters: Mapping[str, Parameter]) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "autotune"),
            group=self._group,
            name=name,
            config=dict(parameters),
            dir=os.environ.get("WANDB_DIR", str(self._directory)),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def end(self, record: TrialRecord, figures: Mapping[str, float]) -> None:
        outcome = {"outcome": record.outcome.value, "purpose": record.purpose}
        self._run.summary.update({**figures, **outcome, "reason": record.reason})
        self._run.finish(exit_code=0 if record.outcome in _RAN else 1)

    def abandon(self) -> None:
        self._run.finish(exit_code=1)

    def close(self) -> None:
        """Nothing is open."""
