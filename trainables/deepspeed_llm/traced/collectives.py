"""Collectives of a rank, by group, kind, size and type."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.topology import ProcessTopology
from torch import Tensor

from autotune.trial.traced import TracedCollective

# By the name of torch's operator: the kind, and which of its arguments is the whole tensor. Of an
# all-gather that is the output, of a reduce-scatter the input.
_KINDS: Mapping[str, tuple[str, int]] = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "broadcast_": ("broadcast", 0),
    "reduce_": ("reduce", 0),
    "alltoall_base_": ("all_to_all", 0),
    "send": ("send", 0),
    "recv_": ("receive", 0),
}
# DeepSpeed's names of the axes.
_AXES = {"model": "tensor", "pipe": "pipeline", "data": "data"}


class _Key(NamedTuple):
    group: str
    kind: str
    size: int
    dtype: str
    beside: bool


class Collectives:
    """Counts collectives by what torch's dispatcher is given."""

    def __init__(self, topology: ProcessTopology) -> None:
        self._topology = topology
        self._counts: dict[_Key, tuple[int, int]] = {}

    def clear(self) -> None:
        """Forget what was counted."""
        self._counts.clear()

    def see(self, operator: Any, arguments: Sequence[Any], *, side_stream: bool) -> None:
        """Count an operator of torch's namespace c10d, if it is a collective.

        `side_stream`: whether it is issued in another stream than that of the computation.
        """
        name = operator.__name__.partition(".")[0]
        if name not in _KINDS:
            return
        kind, whole = _KINDS[name]
        group = next(
            dist.ProcessGroup.unbox(argument)
            for argument in arguments
            if isinstance(argument, torch.ScriptObject) and _is_group(argument)
        )
        ranks = dist.get_process_group_ranks(group)
        if kind in ("send", "receive"):  # the group is that of all ranks
            ranks = [dist.get_rank(), ranks[arguments[2]]]
        if len(ranks) == 1:
            return
        tensors = list(_tensors(arguments[whole]))
        key = _Key(
            group=self._name(ranks),
            kind=kind,
            size=len(ranks),
            dtype=str(tensors[0].dtype).removeprefix("torch."),
            beside=side_stream or _is_asynchronous(operator, arguments),
        )
        count, moved = self._counts.get(key, (0, 0))
        moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self._counts[key] = count + 1, moved

    def counted(self) -> dict[_Key, tuple[int, int]]:
        """(count, bytes) by key since `clear`."""
        return dict(self._counts)

    def _name(self, ranks: Sequence[int]) -> str:
        """The axes along which the ranks differ: "tensor", "data", "tensor+pipeline"."""
        if len(ranks) == self._topology.world_size():
            varying = [axis for axis in _AXES if self._topology.get_dim(axis) > 1]
        else:
            places = [self._topology.get_coord(rank) for rank in ranks]
            varying = [
                axis for axis in _AXES if len({getattr(place, axis) for place in places}) > 1
            ]
        return "+".join(_AXES[axis] for axis in varying)


def extrapolated(
    fewer: Mapping[_Key, tuple[int, int]],
    more: Mapping[_Key, tuple[int, int]],
    steps: int,
) -> list[TracedCollective]:
    """Collectives of a step with `steps` micro-batches more than `fewer`, from a step with one
    micro-batch more; largest first. What happens in one of the two steps only does not grow."""
    found = []
    for key in fewer.keys() | more.keys():
        (count, moved), (next_count, next_moved) = (
            counted.get(key, (0, 0)) for counted in (fewer, more)
        )
        found.append(
            TracedCollective(
                group=key.group,
                kind=key.kind,
                size=key.size,
                count=count + steps * max(0, next_count - count),
                bytes=moved + steps * max(0, next_moved - moved),
                dtype=key.dtype,
                beside_computation=key.beside,
            )
        )
    return sorted((one for one in found if one.count), key=lambda one: (-one.bytes, one.group))


def _is_asynchronous(operator: Any, arguments: Sequence[Any]) -> bool:
    """Whether the caller waits for it later: torch leaves out arguments with default values."""
    for index, argument in enumerate(operator._schema.arguments):
        if argument.name == "async_op":
            return bool(arguments[index]) if index < len(arguments) else True
    return False


def _is_group(argument: torch.ScriptObject) -> bool:
    return "ProcessGroup" in str(argument._type())


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)]
