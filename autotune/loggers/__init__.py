"""Loggers: each passes the trials of a search on to an experiment tracker, one run per trial."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Sequence

from autotune.errors import InputError
from autotune.inputs import shown
from autotune.ledger.listeners import InBackground
from autotune.loggers.tracker import LogsTrials, Tracker


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Logger:
    """A logger that `--log` names."""

    module: str
    """The module that it needs."""
    package: str
    """The package that brings the module."""
    tracker: str
    """Its `Tracker`: module of this package and class."""

    @property
    def is_installed(self) -> bool:
        """Whether what it needs is there; nothing is imported."""
        return importlib.util.find_spec(self.module) is not None

    def make(self) -> LogsTrials:
        """The listener of a search; the tracker's package is imported when the search begins."""
        return LogsTrials(self._tracker)

    def _tracker(self) -> Tracker:
        module, _, name = self.tracker.partition(":")
        made: Tracker = getattr(importlib.import_module(f"{__name__}.{module}"), name)()
        return made


LOGGERS = {
    "tensorboard": Logger(
        module="tensorboardX", package="tensorboardX", tracker="tensorboard:TensorBoard"
    ),
    "mlflow": Logger(module="mlflow", package="mlflow-skinny", tracker="mlflow:Mlflow"),
    "wandb": Logger(module="wandb", package="wandb", tracker="wandb:Wandb"),
}
"""All loggers by name."""


def loggers_named(names: Sequence[str]) -> dict[str, Logger]:
    """The loggers with these names; each text may have several, separated by commas.

    Raises InputError for a name that is not known, and where a package is missing.
    """
    found = {}
    for text in [names] if isinstance(names, str) else names:
        for name in text.split(","):
            if name not in LOGGERS:
                known = ", ".join(LOGGERS)
                raise InputError(f"must be among {known}, got {shown(text)}", field="log")
            found[name] = LOGGERS[name]
    for name, logger in found.items():
        if not logger.is_installed:
            raise InputError(
                f"{name} needs a package that is not installed: pip install {logger.package}",
                field="log",
            )
    return found


def loggers(names: Sequence[str], warn: Callable[[str], object]) -> list[InBackground]:
    """The listeners with these names. Where one fails, `warn` is told. Raises InputError."""
    return [
        InBackground(logger.make(), name, warn) for name, logger in loggers_named(names).items()
    ]
