"""The run directory: all data of a search, consistent after a crash at any time.

    run.json           the frozen request, versions, hardware, the run's id
    trials/*.parquet   one file per finished trial
    steps/*.parquet    the steps of each finished trial, per rank
    traces/*.parquet   the passes of the traced steps of a trial, per rank; only where some are
    pruned.parquet     layouts that were ruled out, with the reason
    best.json          the best layout so far
    logs/TRIAL/rank-N.log

Files are written atomically: under a temporary name, synced, then renamed. A trial is finished when
its file in trials/ exists; that file is never changed, and neither is run.json. Each file has a
digest of its content and the run's id, so that damage and files of other runs are noticed.
"""

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pydantic

from autotune.errors import InputError, RunDirectoryFailed, RunDirectoryReplaced, first_line
from autotune.inputs import first_problem, shown
from autotune.request import Request, request_from_json
from autotune.search.pruning import Pruned
from autotune.store.files import (
    RUN_FILE,
    check_digest,
    refuse_unsafe_entries,
    write_atomically,
)
from autotune.store.json_files import json_bytes, read_json
from autotune.store.pruned_file import PrunedFile
from autotune.store.record import (
    STEP_SCHEMA,
    TRACE_SCHEMA,
    TRIAL_SCHEMA,
    TrialRecord,
)
from autotune.store.stored_trials import check_trials, stored_trial
from autotune.store.tables import table_of, write_table
from autotune.store.trial_rows import step_rows, trace_rows
from autotune.trial.trace import RankTrace
from autotune.trial.trial import StepReport, to_json

_SCHEMA_VERSION = 2
_WITHOUT_DIGESTS = 1  # the version that 0.1 wrote: without the run's id and digests


class RunStore:
    """One run directory, opened for writing by one search at a time."""

    def __init__(
        self,
        directory: Path,
        request: Request,
        *,
        run_id: str | None,
        nodes: Sequence[Mapping[str, Any]],
        versions: Mapping[str, str],
        run_file: bytes,
    ) -> None:
        """Called by `create_run` and `open_run`; `run_file` is the content of run.json."""
        self.directory = directory
        self.request = request
        self.run_id = run_id
        """Random id of the run, in each of its files; None for a run of version 0.1."""
        self.nodes = nodes
        """Descriptions of the nodes that the search was begun on; empty where it is simulated."""
        self.versions = versions
        """Versions of the software that began the search, by name."""
        self._run_file = run_file
        self._pruned = PrunedFile(directory / "pruned.parquet", run_id)

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
        with self.writing():
            if directory.exists():
                interrupted = len(list(self.log_directory.glob(f"{trial_id}.interrupted-*")))
                directory.rename(directory.with_name(f"{trial_id}.interrupted-{interrupted + 1}"))
        return directory

    def add_trial(
        self,
        record: TrialRecord,
        steps: Sequence[StepReport],
        trace: Sequence[RankTrace] = (),
    ) -> None:
        """Store a finished trial; its steps and what was traced of them are written first, so that
        no trial lacks them."""
        name = f"{record.trial_id}.parquet"
        with self.writing():
            self._write("steps", name, step_rows(record, steps), STEP_SCHEMA)
            if trace:
                (self.directory / "traces").mkdir(exist_ok=True)
                self._write("traces", name, trace_rows(record, trace), TRACE_SCHEMA)
            self._write("trials", name, [record.row()], TRIAL_SCHEMA)

    def _write(
        self, folder: str, name: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema
    ) -> None:
        write_table(self.directory / folder / name, table_of(rows, schema, self.run_id))

    def trials(self) -> list[TrialRecord]:
        """All finished trials in the order in which they finished.

        That is the order of their numbers, because one runs at a time. Timestamps are not used: the
        clock may have been set back. Raises InputError where they cannot be those of this search.
        """
        try:
            files = self._trial_files()
            records = {file: stored_trial(file, self.run_id) for file in files}
            in_order = dict(sorted(records.items(), key=lambda item: int(item[1].trial_id)))
            check_trials(in_order, self.request)
        except InputError as error:
            raise InputError(f"{error} (move it away to have its trial run again)") from None
        return list(in_order.values())

    def _trial_files(self) -> list[Path]:
        try:
            return list((self.directory / "trials").glob("*.parquet"))
        except OSError as error:
            raise InputError(f"cannot read {str(self.directory)!r}: {error.strerror}") from None

    def trials_after(self, trial_id: str | None) -> list[TrialRecord]:
        """Finished trials with a greater number than `trial_id` (None: all), in order.

        Raises InputError as `trials`, but does not compare them with the earlier ones.
        """
        files = (self.directory / "trials").glob("*.parquet")
        newer = (f for f in files if trial_id is None or int(f.stem) > int(trial_id))
        return [
            stored_trial(file, self.run_id) for file in sorted(newer, key=lambda f: int(f.stem))
        ]

    def write_pruned(self, pruned: list[Pruned]) -> None:
        """Replace the list of layouts that were ruled out."""
        with self.writing():
            self._pruned.write(pruned)

    def pruned(self) -> list[Pruned]:
        """The layouts that were ruled out."""
        return self._pruned.read()

    def write_best(self, summary: Mapping[str, Any]) -> None:
        """Replace best.json."""
        content = json_bytes(summary)
        with self.writing():
            write_atomically(self.directory / "best.json", lambda path: path.write_bytes(content))

    def best(self) -> dict[str, Any] | None:
        """The content of best.json; None where no layout has run.

        Raises InputError where it cannot be read, and where no trial of the run has these figures.
        """
        file = self.directory / "best.json"
        if not file.exists():
            return None
        content, _ = read_json(file, required=self.run_id is not None)
        trial_id = content.get("trial_id")
        trial = self.directory / "trials" / f"{trial_id}.parquet"
        if isinstance(trial_id, str) and trial_id.isdecimal() and trial.exists():
            record = stored_trial(trial, self.run_id)
            seconds = record.measurement.step_seconds
            if (record.layout.columns(), seconds) == (
                content.get("layout"),
                content.get("step_seconds"),
            ):
                return content
        raise InputError(f"{str(file)!r} must have the layout and step time of a trial of the run")

    def remove_best(self) -> None:
        """Delete best.json, if it exists."""
        with self.writing():
            (self.directory / "best.json").unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Write files inside. Raises RunDirectoryFailed where that fails and where the directory is
        gone, and RunDirectoryReplaced where another run is in its place."""
        self.check_still_there()
        try:
            yield
        except OSError as error:
            self.check_still_there()
            raise RunDirectoryFailed(
                f"the run directory {str(self.directory)!r} cannot be written: {error}"
            ) from None

    def check_still_there(self) -> None:
        """Raise RunDirectoryFailed where the directory is gone, and RunDirectoryReplaced where
        another run is in its place."""
        place = f"the run directory {str(self.directory)!r}"
        try:
            found = (self.directory / RUN_FILE).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise RunDirectoryFailed(f"{place} is gone: it was moved or deleted") from None
        except OSError as error:
            raise RunDirectoryFailed(f"{place} cannot be read: {error}") from None
        if found != self._run_file:
            raise RunDirectoryReplaced(f"{place} must stay that of this search, got another run")


def _refuse_lower(name: str, begun_with: float | None, value: float | None) -> None:
    if value is not None and begun_with is not None and value < begun_with:
        raise InputError(
            f"must be at least the {begun_with:g} that the search was begun with, got {value:g}",
            field=name,
        )


def create_run(
    directory: Path,
    request: Request,
    *,
    nodes: Sequence[Mapping[str, Any]] = (),
    versions: Mapping[str, str] | None = None,
) -> RunStore:
    """Create a run in a directory that is locked.

    `nodes` (their descriptions) and `versions` (of software) are stored in run.json too. Raises
    InputError where the directory holds a run or cannot be written.
    """
    file = directory / RUN_FILE
    if file.exists():
        raise InputError(f"{str(directory)!r} already holds a run", field="out")
    run_id = uuid.uuid4().hex
    content = json_bytes(
        {
            "schema_version": _SCHEMA_VERSION,
            "run_id": run_id,
            "request": to_json(request),
            "versions": versions or {},
            "nodes": list(nodes),
        }
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("trials", "steps", "logs"):
            (directory / name).mkdir(exist_ok=True)
        write_atomically(file, lambda path: path.write_bytes(content))
    except OSError as error:
        raise InputError(f"cannot be written: {error}", field="out") from None
    return RunStore(
        directory,
        request,
        run_id=run_id,
        nodes=nodes,
        versions=versions or {},
        run_file=content,
    )


def open_run(directory: Path) -> RunStore:
    """Open an existing run directory. Raises InputError where there is none that can be read."""
    file = directory / RUN_FILE
    try:
        if not file.is_file():
            raise InputError(f"no run in {str(directory)!r} ({RUN_FILE} is missing)")
        refuse_unsafe_entries(directory)
    except OSError as error:
        raise InputError(f"cannot read {str(directory)!r}: {error.strerror}") from None
    content, raw = read_json(file, required=False)
    try:
        version, run_id = content["schema_version"], content.get("run_id")
        nodes, versions = content.get("nodes", []), content.get("versions", {})
        if version not in (_SCHEMA_VERSION, _WITHOUT_DIGESTS):
            raise ValueError(
                f"schema_version must be {_WITHOUT_DIGESTS} or {_SCHEMA_VERSION}, "
                f"got {shown(version)}"
            )
        if version == _SCHEMA_VERSION:
            check_digest(raw, required=True)
            if not isinstance(run_id, str):
                raise ValueError(f"run_id must be text, got {shown(run_id)}")
        if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
            raise ValueError(f"nodes must be a list of objects, got {shown(nodes)}")
        if not isinstance(versions, dict):
            raise ValueError(f"versions must be an object, got {shown(versions)}")
        request = request_from_json(content["request"])
        return RunStore(
            directory, request, run_id=run_id, nodes=nodes, versions=versions, run_file=raw
        )
    except pydantic.ValidationError as error:
        problem = first_problem(error)
    except KeyError as error:
        problem = f"{error} is missing"
    except (ValueError, TypeError) as error:
        problem = first_line(error)
    raise InputError(f"cannot read {str(file)!r}: {problem}")
