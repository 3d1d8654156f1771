"""One rank of a layout under torchrun: without a host process, a rank prints the results itself."""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

import torch.distributed as dist

from autotune.trial.trial import Ended, Outcome, RankStep, StepReport, TrialSpec
from trainables.deepspeed_llm.failures import classify
from trainables.deepspeed_llm.output import step_line, summary_line
from trainables.deepspeed_llm.preload import import_what_ranks_need
from trainables.deepspeed_llm.rank import Place, train

_POLL_SECONDS = 1.0
_FIRST_FAILURE_KEY = "autotune/first_failed_rank"


def train_as_one_rank(spec: TrialSpec, config: dict[str, Any] | None) -> None:
    """Train this rank. Rank 0 prints the results, or the first rank that fails prints the failure.

    The process exits with status 0 for every outcome: a failed trial is a valid result.
    """
    place = Place(
        rank=int(os.environ["RANK"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    steps: list[StepReport] = []
    with _json_output() as output:
        import_what_ranks_need()

        def on_step(rank_step: RankStep) -> None:
            ranks: list[Any] = [None] * place.world_size
            dist.all_gather_object(ranks, rank_step)
            steps.append(StepReport(step=rank_step.step, ranks=tuple(ranks)))
            if place.rank == 0:
                print(json.dumps(step_line(steps[-1])), file=output, flush=True)

        try:
            train(
                spec,
                place,
                on_ready=lambda: _start_watchdog(spec, steps, place, output),
                on_step=on_step,
                config=config,
            )
            ended = Ended(outcome=Outcome.OK, reason="")
            prints_summary = place.rank == 0
        except Exception as error:
            traceback.print_exc()
            limited = spec.cluster.memory_gib is not None
            failure = classify(error, memory_limited=limited)
            ended = Ended(outcome=failure.outcome, reason=f"rank {place.rank}: {failure.reason}")
            prints_summary = not failure.consequence and _is_first_to_fail(place)
        if prints_summary:
            print(json.dumps(summary_line(spec, steps, ended)), file=output, flush=True)
    _exit_at_once()


def _is_first_to_fail(place: Place) -> bool:
    """Whether this rank fails first. Setting the key makes the other ranks exit."""
    if place.world_size == 1 or not dist.is_initialized():
        return True
    store = dist.distributed_c10d._get_default_store()
    rank = str(place.rank)
    first: bytes = store.compare_set(_FIRST_FAILURE_KEY, "", rank)
    return first.decode() == rank


def _start_watchdog(spec: TrialSpec, steps: list[StepReport], place: Place, output: TextIO) -> None:
    """Start a thread that exits when another rank fails (NCCL would hang) or at the time limit."""
    allowed = spec.trial_timeout_seconds
    deadline = None if allowed is None else time.monotonic() + allowed
    store = dist.distributed_c10d._get_default_store()

    def watch() -> None:
        while not store.check([_FIRST_FAILURE_KEY]):
            if deadline is not None and time.monotonic() > deadline:
                if _is_first_to_fail(place):
                    reason = f"the trial was not done within its {allowed:g} s"
                    ended = Ended(outcome=Outcome.TIMEOUT, reason=reason)
                    print(json.dumps(summary_line(spec, steps, ended)), file=output, flush=True)
                _exit_at_once()
            time.sleep(_POLL_SECONDS)
        time.sleep(_POLL_SECONDS)  # if this rank failed first, it still has to print the summary
        _exit_at_once()

    if place.world_size > 1 or deadline is not None:
        threading.Thread(target=watch, daemon=True).start()


def _exit_at_once() -> None:
    """Exit without the usual shutdown, which would wait for ranks that have exited."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextlib.contextmanager
def _json_output() -> Iterator[TextIO]:
    """Standard output for JSON lines only: whatever libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        yield output
