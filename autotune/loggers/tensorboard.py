"""Logs trials for TensorBoard, each into a folder of its own: ``tensorboard --logdir DIR``."""

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from autotune.loggers.tracker import Parameter
from autotune.store.record import TrialRecord


class TensorBoard:
    """Event files in the run directory, at ``tensorboard/TRIAL``. A `Tracker`."""

    def open(self, space: str, directory: Path) -> None:
        self._folder = directory / "tensorboard"

    def begin(self, name: str, parameters: Mapping[str, Parameter]) -> None:
        trial_id = name.split()[0]
        # From step 0 on, it replaces what an earlier attempt has left.
        self._writer = SummaryWriter(str(self._folder / trial_id), purge_step=0)
        self._parameters = dict(parameters)
        self._writer.add_text("layout", name, 0)

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, record: TrialRecord, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, 0)
        outcome = {"outcome": record.outcome.value, "purpose": record.purpose}
        for summary in hparams({**self._parameters, **outcome}, dict(figures)):
            self._writer.file_writer.add_summary(summary)
        self._writer.add_text("outcome", f"{record.outcome}: {record.reason}".rstrip(": "), 0)
        self._writer.close()

    def abandon(self) -> None:
        self._writer.close()

    def close(self) -> None:
        """Every run has its own files, which are closed."""
