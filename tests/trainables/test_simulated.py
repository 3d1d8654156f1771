"""The simulation of training code, also of other code than the search expects."""

import dataclasses
import statistics
from pathlib import Path

import numpy as np
import pytest

from autotune.cost.model import CostModel
from autotune.cost.trainers import trainer_of, trainer_to_json
from autotune.errors import InputError
from autotune.layout import Layout
from autotune.ledger.search_setup import cost_model_of
from autotune.named_spaces import load_space
from autotune.options.search_options import SearchOptions, request_from_options
from autotune.request import Request
from autotune.store.run_directory import create_run, open_run
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from trainables.simulated import World

SPACE = load_space("llm13b")


def simulation_of(trainer: str | None, **options: object) -> Request:
    return request_from_options(
        SearchOptions(
            space="llm13b",
            trainable="simulated",
            simulated_trainer=trainer,
            **options,  # type: ignore[arg-type]
        )
    )


def trial_of(request: Request, layout: Layout) -> tuple[list[float], Ended]:
    """Step times and end of a trial."""
    space = request.space
    spec = TrialSpec(
        trial_id="0000",
        layout=layout,
        model=space.model,
        cluster=space.cluster,
        precision=space.precision,
        warmup_steps=1,
        measured_steps=5,
        log_dir=None,
        seed=request.seed,
    )
    *steps, end = request.description.make(request.trainable_setup).run(spec, [])
    assert isinstance(end, Ended)
    return [step.step_seconds for step in steps if isinstance(step, StepReport)], end


def test_trials_are_of_the_simulated_trainer_and_predictions_are_not() -> None:
    request = simulation_of("megatron", seed=3)
    # The trainer has no ZeRO 2 and 3.
    assert request.space.zero_stage == (1,)
    assert cost_model_of(request).trainer_name == "deepspeed_llm"
    world = World(SPACE.model, "bf16", SPACE.cluster, trainer="megatron", seed=3)
    layouts = request.space.layouts()
    expected = world.results(layouts)
    for index in range(0, len(layouts), 97):
        seconds, end = trial_of(request, layouts[index])
        assert (end.outcome is Outcome.OK) == expected.fits[index]
        if seconds:
            assert statistics.median(seconds) == pytest.approx(
                expected.step_seconds[index], rel=0.02
            )


def test_the_simulated_trainer_of_a_file_is_stored_with_the_request(tmp_path: Path) -> None:
    mine = dataclasses.replace(trainer_of("nemo"), name="mine")
    (tmp_path / "mine.json").write_text(trainer_to_json(mine))
    request = simulation_of(str(tmp_path / "mine.json"))
    (tmp_path / "mine.json").unlink()
    create_run(tmp_path / "run", request)
    stored = open_run(tmp_path / "run").request
    assert stored == request
    layout = request.space.layouts()[0]
    assert trial_of(stored, layout) == trial_of(simulation_of("nemo"), layout)


def test_only_a_simulation_takes_another_trainer() -> None:
    sentence = "--simulated-trainer must be given for a trainable that simulates any trainer"
    with pytest.raises(InputError, match=sentence):
        request_from_options(
            SearchOptions(space="tiny", trainable="deepspeed", simulated_trainer="megatron")
        )


def test_without_chance_of_layouts_only_constants_are_off() -> None:
    """So layouts that differ in a kernel of the same speed are equally fast."""
    layouts = [
        Layout(data_parallel=64, attention_kernel=kernel, gradient_accumulation_steps=32)
        for kernel in ("sdpa_flash", "flash_attn")
    ]
    for chance, close in ((False, True), (True, False)):
        world = World(SPACE.model, "bf16", SPACE.cluster, chance_of_layouts=chance)
        memory = world.results(layouts).peak_memory_gib
        assert np.isclose(*memory, rtol=1e-9) == close
    found = World(SPACE.model, "bf16", SPACE.cluster, chance_of_layouts=False).results(layouts)
    predicted = CostModel(SPACE.model, "bf16", SPACE.cluster).estimate(layouts).step_seconds
    assert 0 < np.abs(found.step_seconds / predicted - 1).max() < 0.3
