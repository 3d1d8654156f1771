"""Traces ranks: reads a trial and stages from stdin, writes the traced ranks to a file descriptor.

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
    """Trace each stage in a process of its own, as many at once as there are cores."""
    asked = json.load(sys.stdin)
    import_what_ranks_need()
    from autotune.trial.traced import traced_to_json
    from trainables.deepspeed_llm.traced.rank import trace_rank

    spec, stages = trial_spec_from_json(asked["spec"]), asked["stages"]
    at_once = min(len(stages), len(os.sched_getaffinity(0)))
    with multiprocessing.get_context("fork").Pool(at_once, maxtasksperchild=1) as pool:
        ranks = pool.starmap(trace_rank, [(spec, stage) for stage in stages], chunksize=1)
    with open(int(sys.argv[1]), "w", encoding="utf-8") as answer:
        json.dump(traced_to_json(ranks), answer)


if __name__ == "__main__":
    main()
