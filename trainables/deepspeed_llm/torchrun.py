"""One rank of a layout under torchrun: without a host process, a rank prints the results itself."""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from typing import Any, NoReturn, TextIO

import torch.distributed as dist

from autotune.options.command_line import told_output_failure
from autotune.options.output import OutputFailed, results_only
from autotune.trial.trial import Ended, Outcome, RankStep, StepReport, TrialSpec
from trainables.deepspeed_llm.failures import classify
from trainables.deepspeed_llm.launched import Launched
from trainables.deepspeed_llm.output import step_line, summary_line
from trainables.deepspeed_llm.preload import import_what_ranks_need
from trainables.deepspeed_llm.rank import Place, train

_POLL_SECONDS = 1.0
_FIRST_FAILURE_KEY = "autotune/first_failed_rank"


def train_as_one_rank(
    spec: TrialSpec,
    launched: Launched,
    config: dict[str, Any] | None,
    *,
    status_of_failure: int,
) -> NoReturn:
    """Train this rank. Rank 0 prints the results, or the first rank that fails prints the failure.

    The process exits with status 0 for the outcome ok, with `status_of_failure` for any other, and
    as every command where the results cannot be printed.
    """
    place = Place(
        rank=launched.rank, local_rank=launched.local_rank, world_size=launched.world_size
    )
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with results_only() as output:
        trial = _Trial(spec, place, output, status_of_failure)
        try:
            _exit_at_once(trial.run(config))
        except OutputFailed as failure:
            trial.is_first_to_fail()
            _exit_at_once(told_output_failure(failure))


class _Trial:
    """This rank's part of the trial."""

    def __init__(
        self, spec: TrialSpec, place: Place, output: TextIO, status_of_failure: int
    ) -> None:
        self._spec, self._place, self._output = spec, place, output
        self._status_of_failure = status_of_failure
        self._steps: list[StepReport] = []

    def run(self, config: dict[str, Any] | None) -> int:
        """Train; returns the exit status."""
        import_what_ranks_need()
        try:
            train(
                self._spec,
                self._place,
                on_ready=self._start_watchdog,
                on_step=self._record,
                config=config,
            )
        except OutputFailed:
            raise
        except Exception as error:
            traceback.print_exc()
            failure = classify(error, memory_limited=self._spec.cluster.memory_gib is not None)
            # Rank 0 tells why the ranks could not meet.
            is_cause = not failure.consequence or (
                not dist.is_initialized() and not self._place.rank
            )
            if is_cause and self.is_first_to_fail():
                self._print_end(failure.outcome, f"rank {self._place.rank}: {failure.reason}")
            return self._status_of_failure
        if self._place.rank == 0:
            self._print_end(Outcome.OK, "")
        return 0

    def _record(self, rank_step: RankStep) -> None:
        ranks: list[Any] = [None] * self._place.world_size
        dist.all_gather_object(ranks, rank_step)
        self._steps.append(StepReport(step=rank_step.step, ranks=tuple(ranks)))
        if self._place.rank == 0:
            self._print(step_line(self._steps[-1]))

    def _print_end(self, outcome: Outcome, reason: str) -> None:
        ended = Ended(outcome=outcome, reason=reason)
        self._print(summary_line(self._spec, self._steps, ended))

    def _print(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), file=self._output, flush=True)

    def is_first_to_fail(self) -> bool:
        """Whether this rank fails first. Setting the key makes the other ranks exit."""
        if self._place.world_size == 1 or not dist.is_initialized():
            return True
        store = dist.distributed_c10d._get_default_store()
        rank = str(self._place.rank)
        first: bytes = store.compare_set(_FIRST_FAILURE_KEY, "", rank)
        return first.decode() == rank

    def _start_watchdog(self) -> None:
        """Start a thread that exits when another rank fails (NCCL would hang) or at the time
        limit."""
        allowed = self._spec.trial_timeout_seconds
        deadline = None if allowed is None else time.monotonic() + allowed
        store = dist.distributed_c10d._get_default_store()

        def watch() -> None:
            while not store.check([_FIRST_FAILURE_KEY]):
                if deadline is not None and time.monotonic() > deadline:
                    if self.is_first_to_fail():
                        with contextlib.suppress(OutputFailed):
                            self._print_end(
                                Outcome.TIMEOUT, f"the trial was not done within its {allowed:g} s"
                            )
                    _exit_at_once(self._status_of_failure)
                time.sleep(_POLL_SECONDS)
            time.sleep(
                _POLL_SECONDS
            )  # if this rank failed first, it still has to print the summary
            _exit_at_once(self._status_of_failure)

        if self._place.world_size > 1 or deadline is not None:
            threading.Thread(target=watch, daemon=True).start()


def _exit_at_once(status: int) -> NoReturn:
    """Exit without the usual shutdown, which would wait for ranks that have exited."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OutputFailed):
            stream.flush()
    os._exit(status)
