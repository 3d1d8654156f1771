"""One rank under torchrun: without a host process, a rank prints the results itself."""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TextIO

import torch.distributed as dist

from autotune.errors import InputError
from autotune.options.command_line import EXIT_BAD_INPUT, told_output_failure
from autotune.options.output import OutputFailed, results_only
from autotune.trial.trace import RankTrace, merged
from autotune.trial.trial import Ended, Outcome, RankStep, StepReport, TrialSpec
from trainables.deepspeed_llm.failures import classify
from trainables.deepspeed_llm.launched import Launched
from trainables.deepspeed_llm.output import step_line, summary_line, trace_lines
from trainables.deepspeed_llm.preload import import_what_ranks_need
from trainables.deepspeed_llm.rank import Place, train

_POLL_SECONDS = 1.0
_FIRST_FAILURE_KEY = "autotune/first_failed_rank"


class Work(Protocol):
    """What a rank does, and what is said about it at the end."""

    def run(self) -> None:
        """Do it. Its exceptions are classified as those of a trial."""

    def summary(self, ended: Ended) -> dict[str, Any]:
        """The last line that is printed."""


class LaunchedRank:
    """This process as one of the ranks that torchrun started."""

    def __init__(
        self, spec: TrialSpec, launched: Launched, output: TextIO, *, status_of_failure: int
    ) -> None:
        self.place = Place(
            rank=launched.rank, local_rank=launched.local_rank, world_size=launched.world_size
        )
        self._spec, self._output = spec, output
        self._status_of_failure = status_of_failure

    def run(self, work: Work) -> int:
        """Do the work; returns the exit status.

        Rank 0 prints the summary, or the first rank that fails does.
        """
        try:
            work.run()
        except OutputFailed:
            self._is_first_to_fail()
            raise
        except InputError as error:  # found too late to be refused before the start
            if self._is_first_to_fail():
                self._print_end(work, Outcome.CRASHED, str(error))
            return EXIT_BAD_INPUT
        except Exception as error:
            traceback.print_exc()
            failure = classify(error, memory_limited=self._spec.cluster.memory_gib is not None)
            # Rank 0 tells why the ranks could not meet.
            is_cause = not failure.consequence or (
                not dist.is_initialized() and not self.place.rank
            )
            if is_cause and self._is_first_to_fail():
                self._print_end(work, failure.outcome, f"rank {self.place.rank}: {failure.reason}")
            return self._status_of_failure
        if self.place.rank == 0:
            self._print_end(work, Outcome.OK, "")
        return 0

    def print(self, line: dict[str, Any]) -> None:
        """Print a line of JSON on what was the standard output."""
        print(json.dumps(line), file=self._output, flush=True)

    def start_watchdog(self, work: Work) -> None:
        """Start a thread that exits when another rank fails (NCCL would hang) or at the time
        limit."""
        allowed = self._spec.trial_timeout_seconds
        deadline = None if allowed is None else time.monotonic() + allowed
        store = dist.distributed_c10d._get_default_store()

        def watch() -> None:
            while not store.check([_FIRST_FAILURE_KEY]):
                if deadline is not None and time.monotonic() > deadline:
                    if self._is_first_to_fail():
                        reason = f"the trial was not done within its {allowed:g} s"
                        with contextlib.suppress(OutputFailed):
                            self._print_end(work, Outcome.TIMEOUT, reason)
                    _exit_at_once(self._status_of_failure)
                time.sleep(_POLL_SECONDS)
            time.sleep(
                _POLL_SECONDS
            )  # if this rank failed first, it still has to print the summary
            _exit_at_once(self._status_of_failure)

        if self.place.world_size > 1 or deadline is not None:
            threading.Thread(target=watch, daemon=True).start()

    def _print_end(self, work: Work, outcome: Outcome, reason: str) -> None:
        self.print(work.summary(Ended(outcome=outcome, reason=reason)))

    def _is_first_to_fail(self) -> bool:
        """Whether this rank fails first. Setting the key makes the other ranks exit."""
        if self.place.world_size == 1 or not dist.is_initialized():
            return True
        store = dist.distributed_c10d._get_default_store()
        rank = str(self.place.rank)
        first: bytes = store.compare_set(_FIRST_FAILURE_KEY, "", rank)
        return first.decode() == rank


def run_as_one_rank(
    spec: TrialSpec,
    launched: Launched,
    work: Callable[[LaunchedRank], Work],
    *,
    status_of_failure: int,
) -> NoReturn:
    """Do the work as one of the launched ranks, and exit.

    The status is 0 for the outcome ok, `status_of_failure` for any other, and as of every command
    where the results cannot be printed.
    """
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with results_only() as output:
        rank = LaunchedRank(spec, launched, output, status_of_failure=status_of_failure)
        import_what_ranks_need()
        try:
            _exit_at_once(rank.run(work(rank)))
        except OutputFailed as failure:
            _exit_at_once(told_output_failure(failure))


class Trial:
    """A trial's steps: every rank reports each, rank 0 prints it."""

    def __init__(self, spec: TrialSpec, rank: LaunchedRank) -> None:
        self._spec, self._rank = spec, rank
        self._steps: list[StepReport] = []

    def run(self) -> None:
        train(
            self._spec,
            self._rank.place,
            on_ready=lambda: self._rank.start_watchdog(self),
            on_step=self._record,
            on_trace=self._print_trace,
        )

    def summary(self, ended: Ended) -> dict[str, Any]:
        return summary_line(self._spec, self._steps, ended)

    def _record(self, rank_step: RankStep) -> None:
        ranks: list[Any] = [None] * self._rank.place.world_size
        dist.all_gather_object(ranks, rank_step)
        self._steps.append(StepReport(step=rank_step.step, ranks=tuple(ranks)))
        if self._rank.place.rank == 0:
            self._rank.print(step_line(self._steps[-1]))

    def _print_trace(self, own: RankTrace) -> None:
        traces: list[Any] = [None] * self._rank.place.world_size
        dist.all_gather_object(traces, own)
        if self._rank.place.rank == 0:
            for line in trace_lines(merged(traces)):
                self._rank.print(line)


def _exit_at_once(status: int) -> NoReturn:
    """Exit without the usual shutdown, which would wait for ranks that have exited."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OutputFailed):
            stream.flush()
    os._exit(status)
