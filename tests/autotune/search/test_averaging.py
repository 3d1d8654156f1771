"""The predictions of a search turn to those of the trainer that explains the trials."""

import dataclasses
import functools

import numpy as np
import pytest

from autotune.cost.model import CostModel
from autotune.cost.trainers import alternatives, known_trainers, trainer_of
from autotune.named_spaces import load_space
from autotune.search import Prior
from autotune.search.averaging import AveragedPredictions
from trainables.simulated import World

SPACE = load_space("llm13b").restricted({"zero_stage": [1], "micro_batch_size": [1, 2, 4]})
LAYOUTS = SPACE.layouts()
EVERY = np.arange(len(LAYOUTS))
NOISE = 0.02


@functools.cache
def prior() -> Prior:
    return Prior(CostModel(SPACE.model, SPACE.precision, SPACE.cluster), LAYOUTS)


def told(world: str, trials: int) -> tuple[AveragedPredictions, np.ndarray, np.ndarray]:
    """Predictions after trials of random layouts; the world's log of step times and memory."""
    results = World(
        SPACE.model, SPACE.precision, SPACE.cluster, trainer=world, chance_of_layouts=False
    ).results(LAYOUTS)
    predictions = AveragedPredictions(prior())
    seconds = np.log(results.step_seconds)
    memory = np.log(results.peak_memory_gib / results.capacity_gib)
    for index in np.random.default_rng(1).choice(EVERY, trials, replace=False):
        fits = bool(results.fits[index])
        if fits:
            predictions.measure(index, float(seconds[index]), NOISE)
        peak = float(memory[index]) if fits else None
        predictions.observe_memory(index, ran_out=not fits, peak=peak)
    return predictions, seconds, memory


def test_before_any_trial_the_stated_trainer_counts_most() -> None:
    predictions = AveragedPredictions(prior())
    own = prior().log_seconds
    others = [trainer.log_seconds for trainer in prior().trainers[1:]]
    difference = np.abs(predictions.log_seconds(EVERY) - own).mean()
    assert 0 < difference < 0.5 * np.mean([np.abs(other - own).mean() for other in others])


@pytest.mark.parametrize("world", ["nemo", "megatron", "deepspeed_llm"])
def test_a_few_trials_tell_the_trainer(world: str) -> None:
    before, seconds, memory = told(world, 0)
    after, _, _ = told(world, 6)
    for now, then, true in (
        (after.log_seconds(EVERY), before.log_seconds(EVERY), seconds),
        (after.log_memory(EVERY), before.log_memory(EVERY), memory),
    ):
        assert np.abs(now - true).mean() < max(0.6 * np.abs(then - true).mean(), 0.03)


def test_what_takes_the_same_memory_as_a_layout_that_ran_out_does_not_fit() -> None:
    predictions = AveragedPredictions(prior())
    fused = [index for index in EVERY if LAYOUTS[index].attention_kernel == "sdpa_flash"]
    index = min(fused, key=lambda index: abs(prior().log_memory[index]))  # it might just fit
    predictions.observe_memory(index, ran_out=True, peak=None)
    alike = dataclasses.replace(LAYOUTS[index], attention_kernel="flash_attn")
    same = np.isclose(prior().log_memory, prior().log_memory[index], rtol=0, atol=1e-9)
    assert LAYOUTS[index] != alike and same[LAYOUTS.index(alike)]
    assert not predictions.fit_probability(EVERY)[same].any()
    assert predictions.fit_probability(EVERY)[~same].any()


def test_alternatives_are_the_other_trainers_and_one_that_hides_all() -> None:
    own = trainer_of("deepspeed_llm")
    hides_all, *others = alternatives(own)
    assert {trainer.name for trainer in others} == known_trainers().keys() - {own.name}
    cluster = SPACE.cluster
    model = CostModel(SPACE.model, SPACE.precision, cluster)
    faster = model.of_trainer(hides_all).estimate(LAYOUTS).step_seconds
    assert (faster <= model.estimate(LAYOUTS).step_seconds + 1e-9).all()
    # What neither states stays: a fit of one trainer is the best that is known of another.
    fitted = CostModel(
        SPACE.model, SPACE.precision, cluster, constants={**model.constants, "launch_seconds": 1}
    )
    megatron = fitted.of_trainer(trainer_of("megatron")).constants
    assert megatron["launch_seconds"] == 1
    assert megatron["message_parameters"] == 4e7 and megatron["loss_gradients"] == 0


def test_layouts_that_another_trainer_lacks_are_as_stated() -> None:
    space = load_space("llm13b").restricted({"micro_batch_size": [1], "tensor_parallel": [1, 2]})
    layouts = space.layouts()
    whole = Prior(CostModel(space.model, space.precision, space.cluster), layouts)
    names = [trainer.name for trainer in alternatives(trainer_of("deepspeed_llm"))]
    megatron = whole.trainers[1 + names.index("megatron")]
    lacks = np.array([layout.zero_stage > 1 for layout in layouts])
    assert (megatron.log_seconds[lacks] == whole.log_seconds[lacks]).all()
    assert (megatron.log_memory[~lacks] != whole.log_memory[~lacks]).all()
    assert megatron.memory_factors.shape[0] == len(layouts)
