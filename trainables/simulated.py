"""A simulated trainable: step times and out-of-memory errors come from the cost model plus noise.

The simulation differs from the cost model that the search uses: each constant and each layout gets
a random error, so that the search has something to correct. Use it to test search algorithms. Its
step times are not evidence of which layout is fast on real hardware.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Generator, Sequence

import numpy as np

from autotune.cluster import Cluster
from autotune.cost.constants import known_constants
from autotune.cost.model import CostModel
from autotune.cost.trainers import constants_for
from autotune.layout import Layout
from autotune.trial.trainable import RankHost, TrainableDescription
from autotune.trial.trial import Ended, Outcome, RankStep, StepReport, TrialSpec

# Standard deviations of the logarithm: of a constant in units of its spread, of what the formulas
# leave out of a layout's time and memory, and of one step.
_CONSTANTS = 0.2
_LAYOUT_TIME = 0.02
_LAYOUT_MEMORY = 0.03
_STEP = 0.005


class SimulatedTrainable:
    """Draws trials from the cost model with noise. A `Trainable`.

    A trial reports its slowest rank only: there may be thousands.
    """

    @property
    def host_factory(self) -> Callable[..., RankHost] | None:
        """No processes."""
        return None

    def check(self, cluster: Cluster, hosts: Sequence[RankHost]) -> None:
        """Every node is fit."""

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        """The spec's steps at once, or an end before the first where the memory does not do."""
        estimates = _world(spec).estimate([spec.layout])
        random = _random(spec.seed, spec.layout)
        memory = float(estimates.peak_memory_gib[0] * np.exp(_LAYOUT_MEMORY * random.normal()))
        seconds = float(estimates.step_seconds[0] * np.exp(_LAYOUT_TIME * random.normal()))
        if memory > estimates.capacity_gib:
            reason = (
                f"simulated: needs {memory:.1f} GiB of {estimates.capacity_gib:.1f} GiB per device"
            )
            yield Ended(outcome=Outcome.OOM, reason=reason)
            return
        for step in range(spec.steps):
            slowest = RankStep(
                rank=0,
                step=step,
                step_seconds=seconds * float(np.exp(_STEP * random.normal())),
                loss=None,
                grad_norm=None,
                peak_memory_gib=memory,
                peak_reserved_gib=memory,
            )
            yield StepReport(step=step, ranks=(slowest,))
        yield Ended(outcome=Outcome.OK, reason="")


def _world(spec: TrialSpec) -> CostModel:
    """The cost model with constants that are off by chance, the same in every trial of a seed."""
    constants = dict(constants_for(spec.cluster.device, DESCRIPTION.trainer, spec.cluster.network))
    random = np.random.default_rng(spec.seed)
    for name, constant in known_constants().items():
        constants[name] *= float(np.exp(_CONSTANTS * constant.spread * random.normal()))
    return CostModel(spec.model, spec.precision, spec.cluster, constants=constants)


def _random(seed: int, layout: Layout) -> np.random.Generator:
    """Chance that depends on the seed and the layout alone: a layout run twice is the same, and so
    is one that is run with fewer micro-batches."""
    whole = dataclasses.replace(layout, gradient_accumulation_steps=1)
    digest = hashlib.sha256(repr(whole).encode()).digest()
    return np.random.default_rng((seed, int.from_bytes(digest[:8], "big")))


DESCRIPTION = TrainableDescription(
    name="simulated",
    trains="nothing",
    trainer="deepspeed_llm",
    make=lambda setup: SimulatedTrainable(),
)
