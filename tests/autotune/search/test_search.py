"""What each search is for; the contract of all of them is in test_contract.py."""

import dataclasses
import functools
import math
import statistics

import numpy as np
import pytest

from autotune.cost.model import CostModel
from autotune.errors import InputError
from autotune.layout import Layout
from autotune.named_spaces import load_space
from autotune.search import SEARCHES, Observation, Prior, Search, TrialCost, make_search
from autotune.trial.trial import Outcome
from trainables.fake import fake_step_seconds

SPACE = load_space("tiny").restricted({"rmsnorm_kernel": ["fused"]})
LAYOUTS = SPACE.layouts()
MODEL = CostModel(SPACE.model, SPACE.precision, SPACE.cluster)
EVERY_TRIAL_PAYS = TrialCost(
    seconds=lambda layout: (1.0, 6.0), devices=4, training_gpu_hours=math.inf, training_steps=1
)
ALL_SEARCHES = sorted(SEARCHES)


def make(
    name: str, layouts: list[Layout], *, seed: int = 0, cost: TrialCost = EVERY_TRIAL_PAYS
) -> Search:
    return make_search(name, layouts, seed=seed, prior=prior_of(tuple(layouts)), cost=cost)


@functools.cache
def prior_of(layouts: tuple[Layout, ...]) -> Prior:
    return Prior(MODEL, layouts)


def observe(layout: Layout) -> Observation:
    if layout.micro_batch_size > 4:
        return Observation(layout=layout, outcome=Outcome.OOM, step_seconds=None)
    seconds = fake_step_seconds(layout)
    return Observation(layout=layout, outcome=Outcome.OK, step_seconds=seconds)


def test_unknown_search_is_one_sentence() -> None:
    with pytest.raises(
        InputError, match="search must be one of guided, hyperopt, random, grid, rules"
    ):
        make("annealing", LAYOUTS, seed=0)


def test_hyperopt_learns_from_what_it_is_told() -> None:
    def trials(seed: int, told: bool) -> int:
        search = make_search("hyperopt", LAYOUTS, seed=seed, prior=None, cost=EVERY_TRIAL_PAYS)
        best = min(observe(layout).step_seconds or 99 for layout in LAYOUTS)
        for number in range(1, len(LAYOUTS) + 1):
            layout = search.ask()
            assert layout is not None
            seen = observe(layout)
            if (seen.step_seconds or 99) <= 1.01 * best:
                return number
            failed = Observation(layout=layout, outcome=Outcome.CRASHED, step_seconds=None)
            search.tell(seen if told else failed)
        raise AssertionError("the best is among the layouts")

    learnt, unlearnt = (
        statistics.mean(trials(seed, told) for seed in range(12)) for told in (True, False)
    )
    assert learnt < 0.8 * unlearnt, (learnt, unlearnt)


def world(*, slower: float, seed: int, memory: float = 0.95) -> dict[Layout, Observation]:
    """Outcomes that the cost model predicts with two constants and the memory wrong, and noise."""
    random = np.random.default_rng(seed)
    wrong = {
        **MODEL.constants,
        "gemm_efficiency": MODEL.constants["gemm_efficiency"] / slower,
        "link_efficiency": MODEL.constants["link_efficiency"] / slower**2,
    }
    estimates = MODEL.estimate(LAYOUTS, wrong)
    seconds = estimates.step_seconds * np.exp(0.01 * random.standard_normal(len(LAYOUTS)))
    fits = estimates.peak_memory_gib < memory * estimates.capacity_gib
    return {
        layout: Observation(
            layout=layout,
            outcome=Outcome.OK if fit else Outcome.OOM,
            step_seconds=float(time) if fit else None,
        )
        for layout, fit, time in zip(LAYOUTS, fits, seconds, strict=True)
    }


def trials_in(name: str, outcomes: dict[Layout, Observation], seed: int) -> int:
    best = min(found.step_seconds for found in outcomes.values() if found.step_seconds)
    search = make(name, LAYOUTS, seed=seed)
    for number in range(1, len(LAYOUTS) + 1):
        layout = search.ask()
        assert layout is not None
        if (outcomes[layout].step_seconds or 99) <= 1.01 * best:
            return number
        search.tell(outcomes[layout])
    raise AssertionError("the best is among the layouts")


@pytest.mark.parametrize(
    ("memory", "handful"),
    # With a twentieth less memory than it thinks, all that it expects to be fastest runs out first.
    [(1.1, 5), (0.95, 25)],
)
def test_guided_search_needs_a_handful_where_the_model_is_nearly_right(
    memory: float, handful: int
) -> None:
    outcomes = world(slower=1.3, seed=0, memory=memory)
    guided = statistics.median(trials_in("guided", outcomes, seed) for seed in range(5))
    random = statistics.median(trials_in("random", outcomes, seed) for seed in range(5))
    assert guided <= handful < random / 2, (guided, random)


def test_a_trial_corrects_what_is_expected_of_its_relatives() -> None:
    search = make("guided", LAYOUTS)
    outcomes = world(slower=1.5, seed=0)
    ran = [found for found in outcomes.values() if found.step_seconds]
    before = [prediction_error(search, found) for found in ran]
    for found in ran[::25]:
        search.tell(found)
    rest = [found for index, found in enumerate(ran) if index % 25]
    after = [prediction_error(search, found) for found in rest]
    assert statistics.mean(after) < 0.5 * statistics.mean(before)


def prediction_error(search: Search, found: Observation) -> float:
    predicted = search.prediction(found.layout)
    assert predicted is not None and found.step_seconds is not None
    return abs(math.log(predicted.step_seconds / found.step_seconds))


def test_what_ran_out_of_memory_makes_its_relatives_less_likely_to_fit() -> None:
    edge = min(LAYOUTS, key=lambda layout: abs(fit_of(make("guided", LAYOUTS), layout) - 0.6))
    relative = dataclasses.replace(edge, attention_kernel="math")
    assert relative in LAYOUTS or edge.attention_kernel == "math"
    for outcome, wrong_way in ((Outcome.OOM, 1), (Outcome.OK, -1)):
        search = make("guided", LAYOUTS)
        before = fit_of(search, edge)
        seconds = 1.0 if outcome is Outcome.OK else None
        search.tell(Observation(layout=edge, outcome=outcome, step_seconds=seconds))
        assert wrong_way * (fit_of(search, edge) - before) < 0


def fit_of(search: Search, layout: Layout) -> float:
    predicted = search.prediction(layout)
    assert predicted is not None
    return predicted.fit_probability


def test_many_trials_against_the_prediction_of_memory_are_believed() -> None:
    """With full steps of Newton's method nothing was learned: they went to and fro."""
    search = make("guided", LAYOUTS)
    needs = prior_of(tuple(LAYOUTS)).log_memory
    smallest = [LAYOUTS[index] for index in np.argsort(needs)[:40]]
    before = [fit_of(search, layout) for layout in smallest]
    assert min(before) > 0.5
    for count, layout in enumerate(smallest, start=1):
        search.tell(Observation(layout=layout, outcome=Outcome.OOM, step_seconds=None))
        if count >= 8:
            assert max(fit_of(search, told) for told in smallest[:count]) < 0.5


def test_a_search_that_saves_less_than_a_trial_costs_ends() -> None:
    short = dataclasses.replace(EVERY_TRIAL_PAYS, training_gpu_hours=0.001)
    search = make("guided", LAYOUTS, cost=short)
    layout = search.ask()
    assert layout is not None, "without any result there is always a trial that pays"
    search.tell(Observation(layout=layout, outcome=Outcome.OK, step_seconds=0.01))
    assert search.ask() is None
    assert search.stopped_because.startswith("another trial no longer pays")


def test_guided_search_without_a_cost_model_is_refused() -> None:
    with pytest.raises(InputError, match="needs a device that the cost model knows"):
        make_search("guided", LAYOUTS, seed=0, prior=None, cost=EVERY_TRIAL_PAYS)


def test_rules_follow_the_advice() -> None:
    first = make("rules", LAYOUTS).ask()
    assert first is not None
    assert (first.micro_batch_size, first.activation_checkpointing) == (1, "none")
    assert first.tensor_parallel * first.pipeline_parallel == 1


def test_grid_follows_the_space_and_random_the_seed() -> None:
    def first_ten(name: str, seed: int) -> list[Layout | None]:
        search = make(name, LAYOUTS, seed=seed)
        return [search.ask() for _ in range(10)]

    assert first_ten("grid", 1) == LAYOUTS[:10]
    assert first_ten("random", 1) != first_ten("random", 2)
