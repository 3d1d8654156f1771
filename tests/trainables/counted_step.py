"""Run as a module: counts a step of real ranks, and traces the same ranks without peers.

    python -m tests.trainables.counted_step '[[{"tensor_parallel": 2}, "bf16", MODEL]]'

For each layout, precision and model a line of JSON: `real` and `traced` have what was counted on
a rank of the first and of the last pipeline stage.
"""

import functools
import json
import multiprocessing
import os
import socket
import sys
from typing import Any

from autotune.layout import layout_from_mapping
from autotune.model import Model
from autotune.trial.deepspeed_config import worker_environment
from autotune.trial.traced import TracedRank, traced_to_json
from autotune.trial.trial import TrialSpec
from tests.trainables.specs import spec_on


def main() -> None:
    """Count and trace one case after the other."""
    os.environ.update(worker_environment("cpu"))
    from trainables.deepspeed_llm.preload import import_what_ranks_need

    import_what_ranks_need()
    from trainables.deepspeed_llm.traced.rank import trace_rank

    context = multiprocessing.get_context("fork")
    for of_layout, precision, of_model in json.loads(sys.argv[1]):
        spec = specification(of_layout, precision, of_model)
        layout = spec.layout
        stages = sorted({0, layout.pipeline_parallel - 1})
        per_stage = layout.world_size // layout.pipeline_parallel
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ranks = [(spec, rank, port) for rank in range(layout.world_size)]
        with context.Pool(layout.world_size, maxtasksperchild=1) as pool:
            counted = pool.starmap(count, ranks, chunksize=1)
        with context.Pool(len(stages), maxtasksperchild=1) as pool:
            trace = functools.partial(trace_rank, spec, of_gpus=False)
            traced = pool.map(trace, stages, chunksize=1)
        counted_by_stage = [counted[stage * per_stage :][:per_stage] for stage in stages]
        found = {
            "real": traced_to_json([_least(ranks) for ranks in counted_by_stage]),
            "traced": traced_to_json(traced),
        }
        print(json.dumps(found), flush=True)


def _least(ranks: list[TracedRank]) -> TracedRank:
    """Of ranks that do the same the one with the lowest peak: gloo's threads may hold a tensor a
    moment longer than its collective takes."""
    return min(ranks, key=lambda rank: rank.peak_memory_gib)


def specification(of_layout: Any, precision: Any, of_model: Any) -> TrialSpec:
    """A trial of the layout on CPUs."""
    model = Model(**of_model)
    layout = layout_from_mapping(of_layout, model)
    return spec_on("cpu", layout, model, precision)


def count(spec: TrialSpec, rank: int, port: int) -> Any:
    """Count a step of a rank that trains with its peers."""
    size = spec.layout.world_size
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(LOCAL_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    from trainables.deepspeed_llm.rank import Place, process_group
    from trainables.deepspeed_llm.traced.rank import counted_rank

    with process_group(Place(rank=rank, local_rank=rank, world_size=size), "cpu"):
        return counted_rank(spec, rank, in_side_stream=lambda: False, overlap_communication=False)


if __name__ == "__main__":
    main()
