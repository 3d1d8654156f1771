"""Times collectives and exchanges over message sizes: within nodes, between nodes, over all ranks.

All groups of a kind run at once, as in training: every node's, and every chain of ranks of the
same number across the nodes, which share the network cards. A time is the longest over all ranks.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from trainables.deepspeed_llm.groups import own_group

_BATCHES = 5
_MOST_CALLS = 100

Timer = Callable[[Callable[[], object]], float]
"""Gives the seconds of one call of a function, on all ranks at once."""

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")
AFTER_PRODUCTS = "all_reduce_after_products"
"""What an all-reduce adds to a matrix product before it, as in a step: ranks that have computed do
not arrive together."""
EXCHANGE = "exchange"
"""Two ranks send each other a tensor of that size at the same time."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What is measured: an operation in groups of ranks."""

    operation: str
    where: str
    """within (a link domain), between (domains, a rank of each), all (ranks)."""
    ranks: int
    """Of one group."""
    group: Any
    """This rank's group; None: it has none, and only waits."""
    peer: int | None = None
    """The rank to exchange with."""


def curves(rank: int, world_size: int, domain: int) -> list[Curve]:
    """Make the groups and list the curves. All ranks must call it.

    `domain`: consecutive ranks that share links, those of a node or of a rack.
    """
    domain = min(domain, world_size)
    found: list[Curve] = []
    if domain > 1:
        found += _collectives("within", _within(world_size, domain))
        found.append(dataclasses.replace(found[0], operation=AFTER_PRODUCTS))
    if world_size > domain:
        found += _collectives("between", _between(world_size, domain))
        if domain > 1:
            found += _collectives("all", [list(range(world_size))])
    if domain > 1:
        neighbours = [
            pair
            for ranks in _within(world_size, domain)
            for pair in zip(ranks[::2], ranks[1::2], strict=False)
        ]
        found.append(_exchange("within", rank, neighbours))
    if world_size > domain:
        pairs = [
            (first, first + domain)
            for start in range(0, world_size - domain, 2 * domain)
            for first in range(start, start + domain)
            if first + domain < world_size
        ]
        found.append(_exchange("between", rank, pairs))
    return found


def measure(
    curve: Curve,
    sizes: Sequence[int],
    product: tuple[int, int, int],
    device: torch.device,
    timer: Timer,
    enough: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    """A point per size in bytes, with the seconds of one call. All ranks must go through it.

    `product`: rows, inner size and columns of a matrix product. `enough` is asked on all ranks at
    once after the first two points.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    multiply = _product(product, device, dtype)
    for number, size in enumerate(sizes):
        if number >= 2 and enough():
            return
        elements = max(1, size // dtype.itemsize // curve.ranks) * curve.ranks
        call = _call(curve, elements, device, dtype)
        if curve.operation == AFTER_PRODUCTS:
            both = timer(functools.partial(_one_after_the_other, multiply, call))
            # It cannot be shorter than alone; the difference of two noisy times can.
            seconds = max(both - timer(multiply), timer(call))
        else:
            seconds = timer(call)
        yield {
            "ranks": curve.ranks,
            "bytes": elements * dtype.itemsize,
            "seconds": seconds,
        }


def seconds_together(
    call: Callable[[], object], device: torch.device, batch_seconds: float
) -> float:
    """Seconds of one call, on all ranks at once: the median over batches of calls of the longest
    mean over ranks. All of them must call it, and do as many calls, for about `batch_seconds`."""
    call()  # connects the ranks, allocates buffers, and loads kernels
    once = agreed(_batch(call, 2, device), device)
    calls = min(_MOST_CALLS, max(1, int(batch_seconds / once)))
    return statistics.median(agreed(_batch(call, calls, device), device) for _ in range(_BATCHES))


def agreed(value: float, device: torch.device) -> float:
    """The largest value over all ranks."""
    tensor = torch.tensor([value], dtype=torch.float32, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)


def _within(world_size: int, domain: int) -> list[list[int]]:
    """The ranks of each domain that is whole."""
    starts = range(0, world_size - domain + 1, domain)
    return [list(range(start, start + domain)) for start in starts]


def _between(world_size: int, domain: int) -> list[list[int]]:
    """The ranks of the same number in each domain, as far as all domains have one."""
    chains = [list(range(first, world_size, domain)) for first in range(domain)]
    return [chain for chain in chains if len(chain) == len(chains[0])]


def _collectives(where: str, groups: Sequence[Sequence[int]]) -> list[Curve]:
    mine = own_group(groups)
    size = len(groups[0])
    return [Curve(operation=name, where=where, ranks=size, group=mine) for name in COLLECTIVES]


def _exchange(where: str, rank: int, pairs: Sequence[tuple[int, int]]) -> Curve:
    peers = {**dict(pairs), **{second: first for first, second in pairs}}
    return Curve(operation=EXCHANGE, where=where, ranks=2, group=None, peer=peers.get(rank))


def _call(
    curve: Curve, elements: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """A function that does the operation once on tensors of so many elements."""
    whole = torch.zeros(elements, device=device, dtype=dtype)
    if curve.operation == EXCHANGE:
        if curve.peer is None:
            return lambda: None
        received = torch.empty_like(whole)
        both = [
            dist.P2POp(dist.isend, whole, curve.peer),
            dist.P2POp(dist.irecv, received, curve.peer),
        ]

        def exchange() -> None:
            for work in dist.batch_isend_irecv(both):
                work.wait()

        return exchange
    if curve.group is None:
        return lambda: None
    if curve.operation in ("all_reduce", AFTER_PRODUCTS):
        return lambda: dist.all_reduce(whole, group=curve.group)
    shard = torch.zeros(elements // curve.ranks, device=device, dtype=dtype)
    if curve.operation == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, shard, group=curve.group)
    return lambda: dist.reduce_scatter_tensor(shard, whole, group=curve.group)


def _one_after_the_other(*calls: Callable[[], object]) -> None:
    for call in calls:
        call()


def _product(
    sizes: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    rows, inner, columns = sizes
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, columns, device=device, dtype=dtype)
    return lambda: torch.mm(left, right)


def _batch(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Mean seconds of successive calls on this rank."""
    agreed(0.0, device)  # all ranks begin together
    began = time.perf_counter()
    for _ in range(calls):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / calls
