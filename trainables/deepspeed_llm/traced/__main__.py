"""Traces ranks: reads trials and stages from stdin, writes the traced ranks to a file descriptor.

    python -m trainables.deepspeed_llm.traced FD

It is started by `trainables.deepspeed_llm.traced.launch`.
"""

import json
import multiprocessing
import os
import sys
import traceback

from autotune.errors import first_line
from autotune.trial.traced import TracedRank
from autotune.trial.trial import TrialSpec, trial_spec_from_json
from trainables.deepspeed_llm.preload import import_what_ranks_need


def main() -> None:
    """Trace each rank in a process of its own, as many at once as there are cores."""
    asked = json.load(sys.stdin)
    import_what_ranks_need()
    from autotune.trial.traced import traced_to_json

    jobs = [(trial_spec_from_json(one["spec"]), one["stage"]) for one in asked]
    at_once = min(len(jobs), len(os.sched_getaffinity(0)))
    with multiprocessing.get_context("fork").Pool(at_once, maxtasksperchild=1) as pool:
        ranks = pool.starmap(_trace, jobs, chunksize=1)
    with open(int(sys.argv[1]), "w", encoding="utf-8") as answer:
        json.dump(traced_to_json(ranks), answer)


def _trace(spec: TrialSpec, stage: int) -> TracedRank:
    from trainables.deepspeed_llm.traced.rank import trace_rank

    try:
        return trace_rank(spec, stage)
    except Exception as error:
        traceback.print_exc()
        # Of the error itself some cannot be sent to another process.
        raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from None


if __name__ == "__main__":
    main()
