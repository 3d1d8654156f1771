"""Entry point of a forked rank: sets up the rendezvous, runs the task and reports failures."""

import dataclasses
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from autotune.trial.trace import RankTrace
from autotune.trial.trial import TrialSpec, to_json, trial_spec_from_json
from trainables.deepspeed_llm.failures import classify
from trainables.deepspeed_llm.rank import Place, process_group, train

Emit = Callable[[Mapping[str, Any]], None]

_CHECK_SIZE = 512
# An event has at most 4000 bytes, an interval less than 80.
_INTERVALS_PER_EVENT = 40


def main(
    job: Mapping[str, Any], rank: int, local_rank: int, rendezvous: int | None, emit: Emit
) -> int:
    """Run the job's task on this rank; returns the exit status.

    A rank that fails reports it and then waits to be killed. If it exited, its peers would report
    closed connections, perhaps before its own report arrives.
    """
    spec = trial_spec_from_json(job["spec"])
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(job["world_size"]),
            "LOCAL_SIZE": str(len(job["ranks"])),
            "LOCAL_WORLD_SIZE": str(len(job["ranks"])),
            "MASTER_ADDR": job["master_address"],
            "MASTER_PORT": str(job["master_port"]),
        }
    )
    try:
        store = _store(job, rank, rendezvous)
        place = Place(rank=rank, local_rank=local_rank, world_size=job["world_size"], store=store)
        if job["task"] == "check":
            emit({"event": "checked", **_check(spec, place)})
        elif job["task"] == "probe":
            from trainables.probe.rank import probe

            probe(
                spec,
                place,
                lambda curve, point: emit({"event": "measured", "curve": curve, "point": point}),
            )
        else:
            train(
                spec,
                place,
                on_ready=lambda: emit({"event": "ready_to_step"}),
                on_step=lambda step: emit({"event": "step", **_json(step)}),
                on_trace=lambda trace: _emit_trace(trace, emit),
            )
        emit({"event": "done"})
        return 0
    except BaseException as error:
        failure = classify(error, memory_limited=spec.cluster.memory_gib is not None)
        emit(
            {
                "event": "failed",
                "outcome": failure.outcome,
                "reason": failure.reason,
                "consequence": failure.consequence,
            }
        )
        traceback.print_exc()
        while True:
            signal.pause()


def _json(value: object) -> Mapping[str, Any]:
    values = to_json(value)
    assert isinstance(values, dict)
    return values


def _emit_trace(trace: RankTrace, emit: Emit) -> None:
    """Report the trace in pieces that fit into an event each."""
    for first in range(0, len(trace.intervals), _INTERVALS_PER_EVENT):
        intervals = trace.intervals[first : first + _INTERVALS_PER_EVENT]
        emit({"event": "trace", **_json(dataclasses.replace(trace, intervals=intervals))})


def _store(job: Mapping[str, Any], rank: int, rendezvous: int | None) -> Store:
    return TCPStore(
        job["master_address"],
        job["master_port"],
        job["world_size"],
        is_master=rank == 0,
        master_listen_fd=rendezvous,
        wait_for_workers=False,
    )


def _check(spec: TrialSpec, place: Place) -> dict[str, Any]:
    """A matrix product and an all-reduce with known results, and the memory already in use."""
    in_use_gib = 0.0
    if spec.cluster.device.kind == "gpu":  # before NCCL allocates
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        free, total = torch.cuda.mem_get_info()
        in_use_gib = (total - free) / 2**30
    with process_group(place, spec.cluster.device.kind) as device:
        ones = torch.ones(_CHECK_SIZE, _CHECK_SIZE, device=device)
        product = ones @ ones
        product_is_right = bool((product == _CHECK_SIZE).all())
        rank_sum = torch.tensor([float(place.rank)], device=device)
        dist.all_reduce(rank_sum)
        expected = place.world_size * (place.world_size - 1) / 2
        return {
            "product_is_right": product_is_right,
            "all_reduce_is_right": float(rank_sum) == expected,
            "memory_in_use_gib": in_use_gib,
        }
