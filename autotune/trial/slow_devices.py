"""Detects a device that is slower than the others, so that its layout is measured again."""

import dataclasses
import statistics
from collections.abc import Sequence

from autotune.trial.trial import StepReport

# Slow: this many times the other devices' time. Healthy devices are within a few per cent.
_SLOW = 1.3
_FEWEST_STEPS = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SlowDevice:
    """A slow device of a trial."""

    rank: int
    ratio: float
    """Median probe time over the median of the other devices."""

    @property
    def description(self) -> str:
        """The slow-down as a phrase."""
        return f"{self.ratio:.2f} times its peers' time for the same product"


def slow_device(steps: Sequence[StepReport]) -> SlowDevice | None:
    """The slowest of the devices that were slow after every step; None where there is none.

    Compares the ranks' probe times, not step times: ranks wait for each other, so one slow device
    makes all step times long. Warm-up steps count, because the probe needs no warm-up, and because
    a trial stopped for slowness has few other steps.
    """
    probes: dict[int, list[float]] = {}
    for step in steps:
        for rank_step in step.ranks:
            if rank_step.probe_seconds is not None:
                probes.setdefault(rank_step.rank, []).append(rank_step.probe_seconds)
    if len(steps) < _FEWEST_STEPS or len(probes) < 2:
        return None
    medians = {rank: statistics.median(seconds) for rank, seconds in probes.items()}
    slow = []
    for rank, seconds in probes.items():
        peers = statistics.median(medians[other] for other in medians if other != rank)
        if min(seconds) > _SLOW * peers:
            slow.append(SlowDevice(rank=rank, ratio=medians[rank] / peers))
    return max(slow, key=lambda device: device.ratio, default=None)
