"""Logs trials for TensorBoard, each into a folder of its own: ``tensorboard --logdir DIR``."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Not SummaryWriter: it writes in a thread of its own, whose failures nobody hears of.
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import hparams, scalar, text

from autotune.loggers.tracker import Parameter
from autotune.store.record import TrialRecord


class TensorBoard:
    """Event files in the run directory, at ``tensorboard/TRIAL``. A `Tracker`."""

    def open(self, space: str, directory: Path) -> None:
        self._folder = directory / "tensorboard"

    def begin(self, name: str, parameters: Mapping[str, Parameter]) -> None:
        trial_id = name.split()[0]
        folder = self._folder / trial_id
        folder.mkdir(parents=True, exist_ok=True)
        self._parameters = dict(parameters)
        self._events = EventsWriter(str(folder / "events"))
        # From here on it replaces what an earlier attempt has left.
        self._write(session_log=SessionLog(status=SessionLog.START))
        self._write(summary=text("layout", name))

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._write(step, summary=scalar(name, value))
        self._events.flush()

    def end(self, record: TrialRecord, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._write(summary=scalar(name, value))
        outcome = {"outcome": record.outcome.value, "purpose": record.purpose}
        for summary in hparams({**self._parameters, **outcome}, dict(figures)):
            self._write(summary=summary)
        self._write(summary=text("outcome", f"{record.outcome}: {record.reason}".rstrip(": ")))
        self._events.close()

    def abandon(self) -> None:
        self._events.close()

    def close(self) -> None:
        """Every run has its own files, which are closed."""

    def _write(self, step: int = 0, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))
