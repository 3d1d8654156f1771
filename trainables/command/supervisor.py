"""Runs the training command of one process of a trial, in a process forked by the host process.

It reads the command's output and the steps that it reports, and ends everything that the command
started: process groups get SIGTERM, later SIGKILL, and processes that left their group or session
are found as children, because this process adopts them (PR_SET_CHILD_SUBREAPER).
"""

import collections
import contextlib
import ctypes
import os
import re
import selectors
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autotune.report.steps import VARIABLE
from autotune.trial.trial import Outcome, TrialSpec, trial_spec_from_json
from trainables.command.figures import (
    BadReport,
    LineReader,
    Lines,
    line_reader,
    reported,
    step_seconds,
)
from trainables.command.node import free_port, place, problem_of_node, search_path
from trainables.command.placeholders import placeholder_values
from trainables.command.recipe import Recipe, recipe_of
from trainables.deepspeed_llm.host_process import kill_children

Emit = Callable[[Mapping[str, Any]], None]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CHUNK_BYTES = 2**16
# More can only come from processes that go on printing.
_CHUNKS_IN_A_PIPE = 64
_LAST_LINES = 200
# A line with what went wrong; launchers print many more after it.
_ERROR = re.compile(r"(Error|Exception|error): \S")
_SHOWN_LINES, _LONGEST_SHOWN = 3, 400


class _Ended(BaseException):
    """This process was told to end."""


def main(
    job: Mapping[str, Any], rank: int, local_rank: int, rendezvous: int | None, emit: Emit
) -> int:
    """Run the command until it ends or this process is told to end; returns the exit status.

    `rank` is the number of this process among those of the trial.
    """
    recipe, spec = recipe_of(job["recipe"]), trial_spec_from_json(job["spec"])
    if job["task"] == "check":
        problem = problem_of_node(recipe)
        emit({"event": "checked", "problem": problem})
        return 0
    ends = _end_when_told()
    try:
        if rendezvous is not None:
            free_port(rendezvous)
        supervisor = _Supervisor(recipe, spec, emit)
        supervisor.run(placeholder_values(spec, place(job, spec, rank, local_rank)))
    except _Ended:
        pass
    finally:
        ends.clear()
        kill_children()
    return 0


def _end_when_told() -> list[bool]:
    """Raise _Ended on SIGTERM, which also comes when the host process dies; once only."""
    armed = [True]

    def end(number: int, frame: object) -> None:
        if armed:
            armed.clear()
            raise _Ended

    signal.signal(signal.SIGTERM, end)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    return armed


class _Supervisor:
    def __init__(self, recipe: Recipe, spec: TrialSpec, emit: Emit) -> None:
        self._recipe, self._emit = recipe, emit
        self._tokens = spec.model.global_batch_size * spec.model.sequence_length
        self._devices = spec.layout.world_size
        self._read: LineReader | None = None
        self._last_lines: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._steps = 0
        self._reported: collections.Counter[int] = collections.Counter()  # steps, by rank

    def run(self, values: Mapping[str, Any]) -> None:
        """Run the command to its end and report it."""
        with tempfile.TemporaryDirectory(prefix="autotune-", ignore_cleanup_errors=True) as scratch:
            values = {**values, "scratch_directory": scratch}
            if values["log_directory"] is None:
                values["log_directory"] = scratch
            try:
                for name, text in self._recipe.texts(values).items():
                    Path(scratch, name).write_text(text, "utf-8")
                self._read = line_reader(self._recipe)
                self._run(self._recipe.arguments(values), values)
            except BadReport as error:
                self._fail(Outcome.INVALID, str(error), consequence=False)

    def _run(self, arguments: list[str], values: Mapping[str, Any]) -> None:
        steps_read, steps_write = os.pipe()
        _write_log(f"+ {shlex.join(arguments)}\n".encode())
        try:
            process = subprocess.Popen(
                arguments,
                cwd=self._recipe.directory,
                env=self._environment(values, steps_write),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except (OSError, ValueError) as error:
            self._fail(Outcome.CRASHED, f"{arguments[0]} cannot be started: {error}")
            return
        try:
            self._follow(process, steps_read)
        finally:
            _end_group(process, self._recipe.stop_seconds)

    def _environment(self, values: Mapping[str, Any], steps_fd: int) -> dict[str, str]:
        ranks = {
            "RANK": str(values["rank"]),
            "LOCAL_RANK": str(values["local_rank"]),
            "WORLD_SIZE": str(values["world_size"]),
            "LOCAL_WORLD_SIZE": str(values["devices_per_node"]),
        }
        environment = {**os.environ, **ranks, "PATH": search_path()}
        if self._recipe.processes == "node":
            for name in ranks:
                del environment[name]
        environment["MASTER_ADDR"] = str(values["master_addr"])
        environment["MASTER_PORT"] = str(values["master_port"])
        if self._read is None:
            # A path, not a descriptor: launchers such as torchrun close those.
            environment[VARIABLE] = f"/proc/{os.getpid()}/fd/{steps_fd}"
        return {**environment, **self._recipe.environment(values)}

    def _follow(self, process: "subprocess.Popen[bytes]", steps_read: int) -> None:
        """Read output and steps until the command has ended, then report how."""
        assert process.stdout is not None
        log, steps = Lines(), Lines()
        pidfd = os.pidfd_open(process.pid)
        with selectors.DefaultSelector() as selector:
            for fd in (process.stdout.fileno(), steps_read):
                os.set_blocking(fd, False)
                selector.register(fd, selectors.EVENT_READ)
            selector.register(pidfd, selectors.EVENT_READ)
            ended = False
            while not ended:
                ended = any(key.fd == pidfd for key, _ in selector.select())
                # Steps first: a flood of output must not delay them. After the end, read the rest.
                for chunk in _chunks(steps_read, all_of_it=ended):
                    for line in steps.feed(chunk):
                        self._report(*reported(line))
                for chunk in _chunks(process.stdout.fileno(), all_of_it=ended):
                    _write_log(chunk)
                    for line in log.feed(chunk):
                        self._read_line(line)
                    if not chunk and process.stdout.fileno() in selector.get_map():
                        selector.unregister(process.stdout.fileno())  # closed
            for line in log.feed(b"\n"):  # the last line may have no end
                self._read_line(line)
        os.close(pidfd)
        self._report_end(process.wait())

    def _read_line(self, line: str) -> None:
        if line.strip():
            self._last_lines.append(line)
        if self._read is not None and (figures := self._read(line)):
            self._step(figures)

    def _report(self, rank: int, figures: Mapping[str, float]) -> None:
        """A step that one of the ranks here reported: the first to report it is heard."""
        self._reported[rank] += 1
        if self._reported[rank] > self._steps:
            self._step(figures)

    def _step(self, figures: Mapping[str, float]) -> None:
        self._emit(
            {
                "event": "step",
                "step": self._steps,
                "step_seconds": step_seconds(figures, tokens=self._tokens, devices=self._devices),
                "loss": figures.get("loss"),
                "grad_norm": figures.get("grad_norm"),
                "peak_memory_gib": figures.get("peak_memory_gib"),
                "peak_reserved_gib": None,
            }
        )
        self._steps += 1

    def _report_end(self, status: int) -> None:
        rule = self._recipe.out_of_memory
        sign = next(
            (line for line in self._last_lines if any(re.search(p, line) for p in rule.patterns)),
            None,
        )
        how = f"killed by signal {-status}" if status < 0 else f"left with exit status {status}"
        if status in rule.exit_statuses:
            self._fail(Outcome.OOM, how, consequence=False)
        elif status and sign is not None:
            self._fail(Outcome.OOM, sign.strip()[:_LONGEST_SHOWN], consequence=False)
        elif status:
            self._fail(Outcome.CRASHED, f"{how}; {self._end_of_log()}")
        else:
            self._emit({"event": "finished", "steps": self._steps, "log": self._end_of_log()})

    def _end_of_log(self) -> str:
        errors = [line for line in self._last_lines if _ERROR.search(line)]
        if errors:
            return f"in its log: {errors[-1].strip()[:_LONGEST_SHOWN]}"
        last = list(self._last_lines)[-_SHOWN_LINES:]
        text = " | ".join(line.strip() for line in last)[-_LONGEST_SHOWN:]
        return f"its last lines: {text}" if text else "it printed nothing"

    def _fail(self, outcome: Outcome, reason: str, *, consequence: bool = True) -> None:
        """Report a failure. Whether a crash is a consequence of another process's failure cannot be
        known, so one that ran out of memory comes first."""
        self._emit(
            {
                "event": "failed",
                "outcome": outcome,
                "reason": reason,
                "consequence": consequence,
            }
        )


def _chunks(fd: int, *, all_of_it: bool) -> Iterator[bytes]:
    """What can be read now: one chunk, or all that a pipe holds; b"" at end of file."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(_CHUNKS_IN_A_PIPE if all_of_it else 1):
            chunk = os.read(fd, _CHUNK_BYTES)
            yield chunk
            if not chunk:
                return


def _write_log(chunk: bytes) -> None:
    with contextlib.suppress(OSError):
        while chunk:
            chunk = chunk[os.write(1, chunk) :]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_group(process: "subprocess.Popen[bytes]", stop_seconds: float) -> None:
    """SIGTERM to the command's process group, then SIGKILL; its other children follow."""
    assert process.stdout is not None
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + stop_seconds
        os.set_blocking(process.stdout.fileno(), False)
        while process.poll() is None and time.monotonic() < deadline:
            for chunk in _chunks(process.stdout.fileno(), all_of_it=True):
                _write_log(chunk)
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
