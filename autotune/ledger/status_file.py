"""Keeps status.json of a run directory up to date."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

from autotune.request import Request
from autotune.store.record import TrialRecord
from autotune.store.status import RunningStatus, status_now, write_status
from autotune.trial.trial import StepReport, TrialSpec

# Steps can take milliseconds; who watches looks once a second.
_LEAST_SECONDS = 1.0


class StatusFile:
    """Writes what the search is doing into its directory, at most once a second. A `Listener`."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._identity: os.stat_result | None = None
        self._trial: RunningStatus | None = None
        self._written = 0.0

    def search_begins(
        self, request: Request, directory: Path, finished: Sequence[TrialRecord]
    ) -> None:
        self._directory = directory
        with contextlib.suppress(OSError):
            self._identity = directory.stat()
        self._write()

    def trial_started(self, spec: TrialSpec) -> None:
        self._trial = RunningStatus(
            trial_id=spec.trial_id, layout=spec.layout, steps=spec.all_steps
        )
        self._write()

    def step_done(self, spec: TrialSpec, step: StepReport) -> None:
        if self._trial is not None:
            self._trial = dataclasses.replace(
                self._trial,
                step=step.step,
                step_seconds=step.step_seconds,
                peak_memory_gib=step.peak_memory_gib,
            )
        if time.monotonic() - self._written >= _LEAST_SECONDS:
            self._write()

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None:
        self.trial_started(spec)

    def trial_finished(self, record: TrialRecord) -> None:
        self._trial = None
        if time.monotonic() - self._written >= _LEAST_SECONDS:
            self._write()

    def search_ends(self) -> None:
        self._trial = None
        self._write(running=False)

    def _write(self, *, running: bool = True) -> None:
        if self._directory is not None and self._is_still_there(self._directory):
            write_status(self._directory, status_now(running=running, trial=self._trial))
            self._written = time.monotonic()

    def _is_still_there(self, directory: Path) -> bool:
        """Whether no other directory, perhaps of another run, was moved to its place."""
        try:
            return self._identity is not None and os.path.samestat(self._identity, directory.stat())
        except OSError:
            return False
