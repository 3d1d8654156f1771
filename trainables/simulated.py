"""A simulated trainable: step times and out-of-memory errors come from the cost model plus noise.

The simulation differs from the cost model that the search uses: each constant and each layout gets
a random error, so that the search has something to correct. It may also simulate other training
code than the search expects (`--simulated-trainer`). Use it to test search algorithms. Its
step times are not evidence of which layout is fast on real hardware.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.cluster import Cluster
from autotune.cost.columns import Array
from autotune.cost.constants import bounds_of, known_constants
from autotune.cost.model import CostModel
from autotune.cost.trainers import StatedTrainer, constants_for
from autotune.layout import Layout
from autotune.model import Model, Precision
from autotune.trial.trainable import RankHost, TrainableDescription
from autotune.trial.trial import Ended, Outcome, RankStep, StepReport, TrialSpec

# Standard deviations of the logarithm: of a constant in units of its spread, of what the formulas
# leave out of a layout's time and memory, and of one step.
_CONSTANTS = 0.2
_LAYOUT_TIME = 0.02
_LAYOUT_MEMORY = 0.03
_STEP = 0.005


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What trials of n layouts give, in their order."""

    step_seconds: Array
    """[n], also of layouts that run out of memory."""
    peak_memory_gib: Array
    """[n]"""
    capacity_gib: float

    @property
    def fits(self) -> NDArray[np.bool_]:
        """[n] whether the layout does not run out of memory."""
        return self.peak_memory_gib <= self.capacity_gib


class World:
    """A simulated cluster with its training code; the same for the same seed."""

    def __init__(
        self,
        model: Model,
        precision: Precision,
        cluster: Cluster,
        *,
        trainer: StatedTrainer = "deepspeed_llm",
        seed: int = 0,
        chance_of_layouts: bool = True,
    ) -> None:
        """The cost model of `trainer` with constants that are off by chance; without
        `chance_of_layouts` nothing else differs from it. Raises InputError."""
        constants = dict(constants_for(cluster.device, trainer, cluster.network))
        random = np.random.default_rng(seed)
        for name, constant in known_constants().items():
            moved = constants[name] * float(np.exp(_CONSTANTS * constant.spread * random.normal()))
            lower, upper = bounds_of(name)
            constants[name] = min(max(moved, lower), upper)
        self._model = CostModel(model, precision, cluster, trainer=trainer, constants=constants)
        self._seed = seed
        self._chance = float(chance_of_layouts)

    def why_unsupported(self, layout: Layout) -> str | None:
        """Why the training code cannot train the layout, or None."""
        return self._model.setting.trainer.why_unsupported(layout)

    def results(self, layouts: Sequence[Layout]) -> Results:
        """The results of layouts that the training code supports."""
        estimates = self._model.estimate(layouts)
        off = np.array([_random(self._seed, layout).normal(size=2) for layout in layouts])
        memory, seconds = self._chance * off.reshape(-1, 2).T
        return Results(
            step_seconds=estimates.step_seconds * np.exp(_LAYOUT_TIME * seconds),
            peak_memory_gib=estimates.peak_memory_gib * np.exp(_LAYOUT_MEMORY * memory),
            capacity_gib=estimates.capacity_gib,
        )


class SimulatedTrainable:
    """Draws trials from the cost model with noise. A `Trainable`.

    A trial reports its slowest rank only: there may be thousands.
    """

    def __init__(self, trainer: StatedTrainer | None = None) -> None:
        """`trainer` is the training code that is simulated; None: that of the predictions."""
        self._trainer = DESCRIPTION.trainer if trainer is None else trainer

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
        world = World(
            spec.model, spec.precision, spec.cluster, trainer=self._trainer, seed=spec.seed
        )
        counts = spec.micro_batch_counts or (spec.layout.gradient_accumulation_steps,)
        results = world.results([_with_micro_batches(spec.layout, count) for count in counts])
        memory = float(results.peak_memory_gib.max())
        if not results.fits.all():
            capacity = results.capacity_gib
            reason = f"simulated: needs {memory:.1f} GiB of {capacity:.1f} GiB per device"
            yield Ended(outcome=Outcome.OOM, reason=reason)
            return
        random = _random(spec.seed, spec.layout)
        random.normal(size=2)  # those of the layout
        for step in range(spec.all_steps):
            seconds = float(results.step_seconds[step // spec.steps])
            slowest = RankStep(
                rank=0,
                step=step,
                step_seconds=seconds * float(np.exp(_STEP * random.normal())),
                loss=None,
                grad_norm=None,
                peak_memory_gib=memory,
                peak_reserved_gib=memory,
            )
            yield StepReport(step=step, ranks=(slowest,), micro_batches=spec.micro_batches(step))
        yield Ended(outcome=Outcome.OK, reason="")


def _with_micro_batches(layout: Layout, count: int) -> Layout:
    return dataclasses.replace(layout, gradient_accumulation_steps=count)


def _random(seed: int, layout: Layout) -> np.random.Generator:
    """Chance that depends on the seed and the layout alone: a layout run twice is the same, and so
    is one that is run with fewer micro-batches."""
    whole = _with_micro_batches(layout, 1)
    digest = hashlib.sha256(repr(whole).encode()).digest()
    return np.random.default_rng((seed, int.from_bytes(digest[:8], "big")))


DESCRIPTION = TrainableDescription(
    name="simulated",
    trains="nothing",
    trainer="deepspeed_llm",
    make=lambda setup: SimulatedTrainable(setup.simulated_trainer),
    simulates_trainers=True,
    reduced_trials=True,
)
