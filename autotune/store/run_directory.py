"""The run directory: all data of a search, consistent after a crash at any time.

    run.json           the frozen request, versions, hardware
    trials/*.parquet   one file per finished trial
    steps/*.parquet    the steps of each finished trial, per rank
    pruned.parquet     layouts that were ruled out, with the reason
    best.json          the best layout so far
    logs/TRIAL/rank-N.log

Files are written atomically: under a temporary name, synced, then renamed. A trial is finished when
its file in trials/ exists; that file is never changed.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from autotune.errors import InputError, RunDirectoryFailed, first_line
from autotune.inputs import first_problem, json_object, shown
from autotune.request import Request, request_from_json
from autotune.search.pruning import Pruned
from autotune.store.record import (
    PRUNED_SCHEMA,
    STEP_SCHEMA,
    TRIAL_SCHEMA,
    TrialRecord,
    layout_from_row,
    record_from_row,
)
from autotune.trial.trial import StepReport, to_json

T = TypeVar("T")

_SCHEMA_VERSION = 1


class RunStore:
    """One run directory, opened for writing by one search at a time."""

    def __init__(self, directory: Path, request: Request) -> None:
        """Called by `create_run` and `open_run`."""
        self.directory = directory
        self.request = request

    def raise_limits(self, *, max_trials: int | None, gpu_hours: float | None) -> None:
        """Raise the limits of the search for this resumption; None keeps a limit.

        Raises InputError for a lower limit.
        """
        begun_with = self.request
        _refuse_lower("max_trials", begun_with.max_trials, max_trials)
        _refuse_lower("gpu_hours", begun_with.gpu_hours, gpu_hours)
        self.request = dataclasses.replace(
            begun_with,
            max_trials=begun_with.max_trials if max_trials is None else max_trials,
            gpu_hours=begun_with.gpu_hours if gpu_hours is None else gpu_hours,
        )

    @property
    def log_directory(self) -> Path:
        """Parent of the trials' log folders."""
        return self.directory / "logs"

    def new_log_directory(self, trial_id: str) -> Path:
        """Log folder of a trial. One left by an interrupted trial of the same number is renamed."""
        directory = self.log_directory / trial_id
        if directory.exists():
            interrupted = len(list(self.log_directory.glob(f"{trial_id}.interrupted-*")))
            with self.writing():
                directory.rename(directory.with_name(f"{trial_id}.interrupted-{interrupted + 1}"))
        return directory

    def add_trial(self, record: TrialRecord, steps: Sequence[StepReport]) -> None:
        """Store a finished trial; its steps are written first, so that no trial lacks them."""
        rows = [
            {
                "trial_id": record.trial_id,
                "micro_batches": step.micro_batches or record.layout.gradient_accumulation_steps,
                **_plain(to_json(rank)),
            }
            for step in steps
            for rank in step.ranks
        ]
        name = f"{record.trial_id}.parquet"
        self._write_table(self.directory / "steps" / name, rows, STEP_SCHEMA)
        self._write_table(self.directory / "trials" / name, [record.row()], TRIAL_SCHEMA)

    def trials(self) -> list[TrialRecord]:
        """All finished trials in the order in which they finished.

        That is the order of their numbers, because one runs at a time. Timestamps are not used: the
        clock may have been set back.
        """
        files = sorted((self.directory / "trials").glob("*.parquet"))
        records = [record for file in files for record in _read(file, record_from_row)]
        return sorted(records, key=lambda record: int(record.trial_id))

    def write_pruned(self, pruned: Sequence[Pruned]) -> None:
        """Replace the list of layouts that were ruled out."""
        rows = [{**item.layout.columns(), "reason": item.reason} for item in pruned]
        self._write_table(self.directory / "pruned.parquet", rows, PRUNED_SCHEMA)

    def pruned(self) -> list[Pruned]:
        """The layouts that were ruled out."""
        file = self.directory / "pruned.parquet"
        return _read(file, _pruned_from_row) if file.exists() else []

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically."""
        text = json.dumps(content, indent=2) + "\n"
        with self.writing():
            write_atomically(
                self.directory / name, lambda path: path.write_text(text, encoding="utf-8")
            )

    def remove(self, name: str) -> None:
        """Delete a file that is out of date, if it exists."""
        with self.writing():
            (self.directory / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Convert an OSError inside to RunDirectoryFailed."""
        try:
            yield
        except OSError as error:
            raise RunDirectoryFailed(
                f"the run directory {str(self.directory)!r} cannot be written: {error}"
            ) from None

    def _write_table(self, path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        table = pa.Table.from_pylist(rows, schema=schema)
        with self.writing():
            write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def _pruned_from_row(row: Mapping[str, Any]) -> Pruned:
    return Pruned(layout=layout_from_row(row), reason=row["reason"])


def _read(file: Path, from_row: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """Read a Parquet file, converting each row. Raises InputError for an invalid file."""
    try:
        return [from_row(row) for row in pq.read_table(file).to_pylist()]
    except pydantic.ValidationError as error:
        problem = first_problem(error)
    except KeyError as error:
        problem = f"column {error} is missing"
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        problem = first_line(error)
    raise InputError(
        f"{str(file)!r} cannot be read (move it away to have its trial run again): {problem}"
    )


def _refuse_lower(name: str, begun_with: float | None, value: float | None) -> None:
    if value is not None and begun_with is not None and value < begun_with:
        raise InputError(
            f"must be at least the {begun_with:g} that the search was begun with, got {value:g}",
            field=name,
        )


def create_run(directory: Path, request: Request, about: dict[str, Any]) -> RunStore:
    """Create a run directory; `about` (versions, hardware) is stored in run.json too."""
    store = RunStore(directory, request)
    if (directory / "run.json").exists():  # of a search that began in the meantime
        raise InputError(f"{str(directory)!r} already holds a run", field="out")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("trials", "steps", "logs"):
            (directory / name).mkdir(exist_ok=True)
        content = {"schema_version": _SCHEMA_VERSION, "request": to_json(request), **about}
        store.write_json("run.json", content)
    except (OSError, RunDirectoryFailed) as error:
        raise InputError(str(error), field="out") from None
    return store


def refuse_existing_run(directory: Path) -> None:
    """Raise InputError where no new run can be written to the directory."""
    if (directory / "run.json").exists():
        raise InputError(
            f"{str(directory)!r} already holds a run: resume it, or name another directory",
            field="out",
        )
    if directory.exists() and not directory.is_dir():
        raise InputError(f"must be a directory, got the file {str(directory)!r}", field="out")
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"must be below a writable directory, got {str(directory)!r}", field="out")
    if directory.is_dir() and any(directory.iterdir()):
        raise InputError(
            f"must be empty or new, got {str(directory)!r} with files in it", field="out"
        )


def open_run(directory: Path) -> RunStore:
    """Open an existing run directory. Raises InputError where there is none that can be read."""
    file = directory / "run.json"
    if not file.is_file():
        raise InputError(f"no run in {str(directory)!r} (run.json is missing)")
    try:
        content = json_object(file.read_text(encoding="utf-8"), what="run.json")
        version = content["schema_version"]
        if version == _SCHEMA_VERSION:
            return RunStore(directory, request_from_json(content["request"]))
        problem = f"schema_version must be {_SCHEMA_VERSION}, got {shown(version)}"
    except pydantic.ValidationError as error:
        problem = first_problem(error)
    except KeyError as error:
        problem = f"{error} is missing"
    except (OSError, ValueError, TypeError) as error:
        problem = first_line(error)
    raise InputError(f"cannot read {str(file)!r}: {problem}")


@contextlib.contextmanager
def sole_user(directory: Path) -> Iterator[None]:
    """Lock the directory. Raises InputError where another search has locked it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = _locked(directory / ".lock")
    except BlockingIOError:
        raise InputError(f"another search is at work in {str(directory)!r}") from None
    except OSError as error:
        raise InputError(f"the run directory must be writable, and lockable: {error}") from None
    try:
        if not os.access(directory, os.W_OK):
            raise InputError(f"the run directory must be writable, got {str(directory)!r}")
        yield
    finally:
        os.close(lock)


def _locked(path: Path) -> int:
    """Lock the file and return its descriptor. It is opened for reading, because a descriptor open
    for writing prevents remounting the file system read-only; on NFS, which locks only files open
    for writing, it is opened for writing."""
    for mode in (os.O_RDONLY, os.O_RDWR):
        descriptor = os.open(path, mode | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno != errno.EBADF or mode == os.O_RDWR:
                raise
    raise AssertionError("the last mode returns or raises")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary file, then replace `path` by that file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # on a file system that became read-only
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(values: object) -> dict[str, Any]:
    assert isinstance(values, dict)
    return values
