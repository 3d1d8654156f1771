"""Which device is slow against its peers: the layout is not to blame for it."""

import dataclasses
import statistics
from collections.abc import Sequence

from autotune.trial.trial import StepReport

# Healthy devices of a kind are within a few per cent of each other; a throttled one is not.
_SLOW = 1.3
_FEWEST_STEPS = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SlowDevice:
    """The slowest device of a trial."""

    rank: int
    ratio: float
    """Its time for the probe, over its peers'."""

    @property
    def says(self) -> str:
        """For people."""
        return f"{self.ratio:.2f} times its peers' time for the same product"


def slow_device(steps: Sequence[StepReport]) -> SlowDevice | None:
    """The slowest of those devices that were slow after every step; None: there is none.

    Judged by the ranks' probes, not by their step times: ranks wait for each other, so one slow
    device makes the steps of all of them long. Warm-up steps count: the probe needs none, and a
    trial that a slow device got stopped has few others.
    """
    probes: dict[int, list[float]] = {}
    for step in steps:
        for one in step.ranks:
            if one.probe_seconds is not None:
                probes.setdefault(one.rank, []).append(one.probe_seconds)
    if len(steps) < _FEWEST_STEPS or len(probes) < 2:
        return None
    medians = {rank: statistics.median(seconds) for rank, seconds in probes.items()}
    slow = []
    for rank, seconds in probes.items():
        peers = statistics.median(medians[other] for other in medians if other != rank)
        if min(seconds) > _SLOW * peers:
            slow.append(SlowDevice(rank=rank, ratio=medians[rank] / peers))
    return max(slow, key=lambda device: device.ratio, default=None)
