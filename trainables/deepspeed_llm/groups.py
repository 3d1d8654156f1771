"""Process groups: all groups of one kind are made by one call, and none is made twice.

DeepSpeed asks for each group of every grid separately, twice for a pipeline, on all ranks. Where
the default group has a device (NCCL), each request would be a collective call of all ranks.
"""

import datetime
from collections.abc import Iterable, Sequence

import torch.distributed as dist
from deepspeed.comm import comm

COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)
"""The tuner's own deadlines end a trial that hangs; this timeout only has to be longer."""


def own_group(groups: Sequence[Sequence[int]]) -> dist.ProcessGroup | None:
    """Make disjoint groups of ranks; returns the one of this rank, None where it is in none.

    A collective call: every rank must make it, with the same `groups`. NCCL splits all of them off
    the default group at once. With gloo a rank has work in its own group only: torch does not wait
    for the other ranks (unless TORCH_DIST_INIT_BARRIER is 1), and names groups by their number.
    """
    if _can_be_split():
        split = [sorted(ranks) for ranks in groups]
        return dist.split_group(split_ranks=split, timeout=COLLECTIVE_TIMEOUT)
    own = None
    for ranks in groups:
        group = dist.new_group(list(ranks), timeout=COLLECTIVE_TIMEOUT)
        own = group if dist.get_rank() in ranks else own
    return own


class Groups:
    """The groups that this rank knows of, its own and others; all ranks know the same ones."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], dist.ProcessGroup | None] = {}

    def make(self, groups: Iterable[Iterable[int]]) -> None:
        """Make those of disjoint groups of ranks that are not known yet. A collective call."""
        named = (tuple(sorted(ranks)) for ranks in groups)
        new = [ranks for ranks in named if ranks not in self._known]
        if not new:
            return
        own = own_group(new)
        self._known |= {ranks: own if dist.get_rank() in ranks else None for ranks in new}

    def group(self, ranks: Iterable[int]) -> object:
        """The group of these ranks, as torch's `new_group` returns it; made if it is not known.
        A collective call."""
        named = tuple(sorted(ranks))
        self.make([named])
        return self._known[named] or dist.GroupMember.NON_GROUP_MEMBER

    def give_to_deepspeed(self) -> None:
        """Have DeepSpeed take its groups from here from now on."""
        comm.cdb.new_group = self.group


def _can_be_split() -> bool:
    default = dist.group.WORLD
    return default is not None and default.bound_device_id is not None
