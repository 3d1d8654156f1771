"""The learning rate of each step: linear warm-up, then a cosine down to the minimum."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A function of the step alone, so that a resumed training needs no state of it."""

    peak: float
    """Learning rate at the end of the warm-up."""
    minimum: float
    """Learning rate of the last step."""
    warmup_steps: int
    """Steps that it rises over; the last of them has the peak."""
    steps: int
    """Steps of the whole training."""

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        first = max(0, self.warmup_steps - 1)
        progress = (step - first) / max(1, self.steps - 1 - first)
        share = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return self.minimum + (self.peak - self.minimum) * share
