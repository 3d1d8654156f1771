"""status.json: what a search is doing, for whoever watches its directory from elsewhere.

It is not needed to resume a search, and says nothing about results. A search that was killed leaves
it as it was: `Status.updated_at` tells how old it is.
"""

import contextlib
import datetime
import json
import os
import socket
from pathlib import Path

import psutil
import pydantic
from pydantic.dataclasses import dataclass

from autotune.layout import Layout
from autotune.store.files import write_atomically
from autotune.trial.trial import to_json

STATUS_FILE = "status.json"
"""Name of the file in a run directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStatus:
    """The trial that runs."""

    trial_id: str
    layout: Layout
    steps: int
    """Steps that it is to do."""
    step: int | None = None
    """The last step that was done, from 0; None: none yet."""
    step_seconds: float | None = None
    """Time of that step."""
    peak_memory_gib: float | None = None
    """Peak memory so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a search is doing."""

    running: bool
    """Whether it goes on; False: it has ended or was interrupted."""
    host: str
    """Name of the machine that the search runs on."""
    process_id: int
    """Its process there."""
    updated_at: pydantic.AwareDatetime
    """When this was written."""
    trial: RunningStatus | None = None
    """The trial that runs; None between trials."""

    @property
    def is_gone(self) -> bool:
        """Whether the search was killed, as far as that can be told from this machine."""
        here = self.running and self.host == socket.gethostname()
        return here and not psutil.pid_exists(self.process_id)


def status_now(*, running: bool, trial: RunningStatus | None = None) -> Status:
    """The status of a search of this process."""
    return Status(
        running=running,
        host=socket.gethostname(),
        process_id=os.getpid(),
        updated_at=datetime.datetime.now(datetime.UTC),
        trial=trial,
    )


def write_status(directory: Path, status: Status) -> None:
    """Replace the file. A failure is passed over: the search itself notices a full disk."""
    content = json.dumps(to_json(status))
    with contextlib.suppress(OSError):
        write_atomically(directory / STATUS_FILE, lambda path: path.write_text(content))


def read_status(directory: Path) -> Status | None:
    """The status; None where there is none that can be read."""
    try:
        content = (directory / STATUS_FILE).read_bytes()
        return pydantic.TypeAdapter(Status).validate_json(content)
    except (OSError, ValueError):
        return None
