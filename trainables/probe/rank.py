"""One rank of a probe: measures its device beside all others, then the network with them.

All ranks do each call as often and at the same time, as devices of one node share power, and CPU
ranks cores. Rank 0 reports the points.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist

from autotune.trial.trial import TrialSpec
from trainables.deepspeed_llm.memory import GIB, non_torch_bytes
from trainables.deepspeed_llm.rank import Place, process_group
from trainables.probe import collectives, curves
from trainables.probe.sizes import message_bytes, sizes_on

# Shares of the time by which a section ends. What begins later is measured at its first points.
_PRODUCTS, _ATTENTION, _NETWORK = 0.25, 0.5, 1.0
_LEAST_POINTS = 2
# A short probe times each call for a shorter time, too.
_BATCHES_IN_THE_LIMIT = 1000
_LONGEST_REASON = 300

Point = Mapping[str, Any]
Report = Callable[[str, Point], None]
"""Called with the name of a curve and a point of it."""


def probe(spec: TrialSpec, place: Place, report: Report) -> None:
    """Measure everything with the other ranks; on rank 0, `report` every point.

    The trial's time limit is the time for the measurements. Exceptions of collectives pass through.
    """
    limit, began = spec.trial_timeout_seconds, time.monotonic()
    assert limit is not None, "a probe has a limited time"
    kind, cluster = spec.cluster.device.kind, spec.cluster
    with process_group(place, kind) as device:

        def over(share: float) -> Callable[[], bool]:
            """Whether that share of the time is over, the same answer on all ranks."""
            ends = began + share * limit
            return lambda: collectives.agreed(float(time.monotonic() > ends), device) > 0

        def reported(name: str, points: Iterator[Point]) -> None:
            for point in points:
                if place.rank == 0:
                    report(name, point)

        collectives.agreed(0.0, device)  # connects the ranks, as in training
        reported("facts", iter([_facts(kind)]))
        sizes = sizes_on(kind)
        batch_seconds = min(sizes.batch_seconds, limit / _BATCHES_IN_THE_LIMIT)

        def timer(call: Callable[[], object]) -> float:
            return collectives.seconds_together(call, device, batch_seconds)

        products = curves.matrix_products(kind, sizes, timer)
        reported("matrix_products", _together(products, over(_PRODUCTS)))
        bandwidths = (
            {"operation": operation, "gb_per_second": gb_per_second}
            for operation, gb_per_second in curves.bandwidth(kind, sizes, timer)
        )
        reported("bandwidth", _together(bandwidths))
        for kernel in cluster.device.attention_kernels:
            points = curves.attention(kind, sizes, timer, kernel)
            reported(f"attention {kernel}", _together(points, over(_ATTENTION)))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        domain = cluster.links.link_domain or cluster.gpus_per_node
        for curve in collectives.curves(place.rank, place.world_size, domain):
            points = collectives.measure(
                curve, message_bytes(kind), sizes.product, device, timer, over(_NETWORK)
            )
            reported(f"{curve.operation} {curve.where}", points)
        collectives.agreed(0.0, device)  # no rank leaves while another still measures


def _facts(kind: Literal["gpu", "cpu"]) -> dict[str, Any]:
    found = curves.device_facts(kind)
    library = f"gloo of torch {torch.__version__}"
    context_gib = None
    if kind == "gpu":
        library = f"{'RCCL' if torch.version.hip else 'NCCL'} {found['nccl']}"
        context_gib = non_torch_bytes() / GIB
    return {**found, "torch": torch.__version__, "library": library, "context_gib": context_gib}


def _together(
    points: Iterator[dict[str, Any]], enough: Callable[[], bool] = lambda: False
) -> Iterator[dict[str, Any]]:
    """The points, which are the same on all ranks. A rank that fails ends the curve on all of them:
    its last point is the `error`."""
    for number in itertools.count():
        if number >= _LEAST_POINTS and enough():
            return
        everyone: list[dict[str, Any] | None] = [None] * dist.get_world_size()
        point = _next(points)
        dist.all_gather_object(everyone, point)
        if failed := [found for found in everyone if found and "error" in found]:
            yield failed[0]
            return
        if point is None:
            return
        yield point


def _next(points: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    """The next point; None where there is none. A kernel may refuse a size or lack memory."""
    try:
        return next(points, None)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"error": reason[:_LONGEST_REASON]}
