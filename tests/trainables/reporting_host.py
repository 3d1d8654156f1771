"""A host process whose ranks do not train but report the device that they would use."""

import json
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

from autotune.trial.trial import RankStep, TrialSpec
from trainables.deepspeed_llm import host_process, rank, rank_process

_VARIABLES = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")


def main() -> None:
    """Replace the training by a report, then run the real host process."""

    def train(spec: TrialSpec, place: rank.Place, **callbacks: Any) -> None:
        report = {name: os.environ[name] for name in _VARIABLES}
        report["place"] = [place.rank, place.local_rank, place.world_size]
        Path(os.environ["REPORTS"], f"{place.rank}.json").write_text(json.dumps(report))
        # Rank 0 serves the rendezvous: it must not exit before the other ranks have joined.
        size, store = place.world_size, place.store
        dist.init_process_group("gloo", store=store, rank=place.rank, world_size=size)
        dist.barrier()
        callbacks["on_ready"]()
        figures: dict[str, Any] = dict.fromkeys(
            ("loss", "grad_norm", "peak_memory_gib", "peak_reserved_gib")
        )
        for step in range(spec.steps):
            callbacks["on_step"](RankStep(rank=place.rank, step=step, step_seconds=0.01, **figures))

    rank_process.train = train
    host_process.main()


if __name__ == "__main__":
    main()
