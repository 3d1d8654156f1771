"""Logs trials to MLflow: to the server of MLFLOW_TRACKING_URI, or into the run directory."""

import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from autotune.loggers.tracker import Parameter
from autotune.store.record import TrialRecord
from autotune.trial.trial import Outcome

_RAN = (Outcome.OK, Outcome.STOPPED)


class Mlflow:
    """Runs of the experiment ``autotune SPACE``. A `Tracker`."""

    def open(self, space: str, directory: Path) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            uri = (directory / "mlruns").absolute().as_uri()
            # Else MLflow asks for a database: these files are a record of one search.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # says the same
            self._client = MlflowClient(uri)
            name = f"autotune {space}"
            known = self._client.get_experiment_by_name(name)
            self._experiment = (
                self._client.create_experiment(name) if known is None else known.experiment_id
            )
        self._directory = str(directory)

    def begin(self, name: str, parameters: Mapping[str, Parameter]) -> None:
        tags = {"run_directory": self._directory}
        run = self._client.create_run(self._experiment, tags=tags, run_name=name)
        self._run = run.info.run_id
        self._client.log_batch(
            self._run, params=[Param(key, str(value)) for key, value in parameters.items()]
        )

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        self._log(figures, step)

    def end(self, record: TrialRecord, figures: Mapping[str, float]) -> None:
        self._log(figures, 0)
        tags = {"outcome": record.outcome.value, "purpose": record.purpose, "reason": record.reason}
        self._client.log_batch(self._run, tags=[RunTag(*tag) for tag in tags.items()])
        status = "FINISHED" if record.outcome in _RAN else "FAILED"
        self._client.set_terminated(self._run, status)

    def abandon(self) -> None:
        self._client.set_terminated(self._run, "KILLED")

    def close(self) -> None:
        """Nothing is open."""

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)
