"""Traces ranks: reads trials and stages from stdin, writes the traced ranks to a file descriptor.

    python -m trainables.deepspeed_llm.traced FD

It is started by `trainables.deepspeed_llm.traced.launch`.
"""

import json
import multiprocessing
import os
import sys

from autotune.trial.trial import trial_spec_from_json
from trainables.deepspeed_llm.preload import import_what_ranks_need


def main() -> None:
    """Trace each rank in a process of its own, as many at once as there are cores."""
    asked = json.load(sys.stdin)
    import_what_ranks_need()
    from autotune.trial.traced import traced_to_json
    from trainables.deepspeed_llm.traced.rank import trace_rank

    jobs = [(trial_spec_from_json(one["spec"]), one["stage"]) for one in asked]
    at_once = min(len(jobs), len(os.sched_getaffinity(0)))
    with multiprocessing.get_context("fork").Pool(at_once, maxtasksperchild=1) as pool:
        ranks = pool.starmap(trace_rank, jobs, chunksize=1)
    with open(int(sys.argv[1]), "w", encoding="utf-8") as answer:
        json.dump(traced_to_json(ranks), answer)


if __name__ == "__main__":
    main()
