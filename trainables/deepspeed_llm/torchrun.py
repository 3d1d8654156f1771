"""One rank of a layout under torchrun: no host process, the ranks speak for themselves."""

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
_SPOKESMAN_KEY = "autotune/who_reports_the_failure"


def train_as_one_rank(spec: TrialSpec, config: dict[str, Any] | None) -> None:
    """Train this rank; rank 0, or the first rank that fails, prints what happened.

    Leaves the process with status 0: any outcome on record is a result.
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

        def on_step(mine: RankStep) -> None:
            ranks: list[Any] = [None] * place.world_size
            dist.all_gather_object(ranks, mine)
            steps.append(StepReport(step=mine.step, ranks=tuple(ranks)))
            if place.rank == 0:
                print(json.dumps(step_line(steps[-1])), file=output, flush=True)

        try:
            train(
                spec,
                place,
                on_ready=lambda: _leave_with_the_others(spec, steps, place, output),
                on_step=on_step,
                config=config,
            )
            ended = Ended(outcome=Outcome.OK, reason="")
            speaks = place.rank == 0
        except Exception as error:
            traceback.print_exc()
            limited = spec.cluster.memory_gib is not None
            failure = classify(error, memory_limited=limited)
            ended = Ended(outcome=failure.outcome, reason=f"rank {place.rank}: {failure.reason}")
            speaks = not failure.consequence and _speaks_for_all(place)
        if speaks:
            print(json.dumps(summary_line(spec, steps, ended)), file=output, flush=True)
    _leave()


def _speaks_for_all(place: Place) -> bool:
    """Whether this rank is the first to fail; tells the others to leave."""
    if place.world_size == 1 or not dist.is_initialized():
        return True
    store = dist.distributed_c10d._get_default_store()
    mine = str(place.rank)
    first: bytes = store.compare_set(_SPOKESMAN_KEY, "", mine)
    return first.decode() == mine


def _leave_with_the_others(
    spec: TrialSpec, steps: list[StepReport], place: Place, output: TextIO
) -> None:
    """Leave when another rank has failed: NCCL would wait for it; or when the time is up."""
    allowed = spec.trial_timeout_seconds
    deadline = None if allowed is None else time.monotonic() + allowed
    store = dist.distributed_c10d._get_default_store()

    def watch() -> None:
        while not store.check([_SPOKESMAN_KEY]):
            if deadline is not None and time.monotonic() > deadline:
                if _speaks_for_all(place):
                    reason = f"the trial was not done within its {allowed:g} s"
                    ended = Ended(outcome=Outcome.TIMEOUT, reason=reason)
                    print(json.dumps(summary_line(spec, steps, ended)), file=output, flush=True)
                _leave()
            time.sleep(_POLL_SECONDS)
        time.sleep(_POLL_SECONDS)  # for the spokesman's last words, if it is this rank
        _leave()

    if place.world_size > 1 or deadline is not None:
        threading.Thread(target=watch, daemon=True).start()


def _leave() -> None:
    """End the process without the usual shutdown: it would wait for peers that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextlib.contextmanager
def _json_output() -> Iterator[TextIO]:
    """The standard output for our lines alone; libraries that print go to the standard error."""
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        yield output
