"""What cannot be true is recognised; what can be is not."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.cost.minimum import minimum_step_seconds
from autotune.cost.model import CostModel
from autotune.ledger.plausibility import FinalLoss, FinalLosses, why_impossible
from autotune.named_spaces import load_space
from autotune.trial.measurement import measure, why_not_measured
from autotune.trial.slow_devices import slow_device
from autotune.trial.trial import Outcome, RankStep, StepReport, TrialSpec


def a_spec(**changes: object) -> TrialSpec:
    space = load_space("llm13b")
    layout = space.layouts()[0]
    values = {
        "trial_id": "0001",
        "layout": layout,
        "model": space.model,
        "cluster": space.cluster,
        "precision": "bf16",
        "warmup_steps": 1,
        "measured_steps": 3,
        "log_dir": None,
        **changes,
    }
    return TrialSpec(**values)


def a_step(number: int, ranks: int = 2, **changes: object) -> StepReport:
    values = {
        "step_seconds": 1.0,
        "loss": 9.0,
        "grad_norm": 1.0,
        "peak_memory_gib": 1.0,
        "peak_reserved_gib": 1.0,
        **changes,
    }
    return StepReport(
        step=number,
        ranks=tuple(RankStep(rank=rank, step=number, **values) for rank in range(ranks)),
    )


def reason(spec: TrialSpec, step_seconds: float) -> str | None:
    steps = [a_step(n, step_seconds=step_seconds) for n in range(spec.steps)]
    measured = measure(spec, steps)
    impossible = why_not_measured(measured, Outcome.OK)
    return impossible or why_impossible(spec, measured, steps, "deepspeed_llm")


def least(spec: TrialSpec) -> float:
    return minimum_step_seconds(
        spec.layout, spec.model, peak_flops_per_second=312e12, partition="blocks"
    )


def test_more_flops_than_the_peak_are_refused() -> None:
    spec = a_spec()
    said = reason(spec, 1e-3)
    assert said is not None and said.startswith("hardware_flops_utilisation must be at most 1, got")
    assert reason(spec, 100.0) is None


def test_stages_after_the_slowest_work_beside_it() -> None:
    """Seven blocks in four stages without a head of note: 2, 2, 2, 1."""
    space = load_space("llm13b")
    model = dataclasses.replace(space.model, num_hidden_layers=7, vocab_size=2)
    layout = dataclasses.replace(
        space.layouts()[0],
        tensor_parallel=1,
        pipeline_parallel=4,
        micro_batch_size=1,
        gradient_accumulation_steps=4,
    )
    head = 6 * model.vocab_size * model.hidden_size
    block = (
        model.hardware_flops_per_token(layout.activation_checkpointing) - head
    ) / model.num_hidden_layers
    flops = (4 * 2 + 2 + 2) * block * model.sequence_length
    found = minimum_step_seconds(layout, model, peak_flops_per_second=1e12, partition="blocks")
    assert found == pytest.approx(flops / 1e12, rel=1e-3)


def test_a_step_below_the_minimum_of_its_pipeline_is_refused() -> None:
    layout = next(x for x in load_space("llm13b").layouts() if x.pipeline_parallel >= 4)
    spec = a_spec(layout=layout)
    said = reason(spec, least(spec) * 0.99)
    assert said is not None and "at least" in said and "peak" in said
    assert reason(spec, least(spec) * 1.01) is None


def test_the_minimum_counts_every_flop_once() -> None:
    """Without a pipeline it is what hardware_flops_utilisation calls 1."""
    spec = a_spec(layout=next(x for x in load_space("llm13b").layouts() if x.pipeline_parallel < 2))
    steps = [a_step(n, step_seconds=least(spec)) for n in range(spec.steps)]
    assert measure(spec, steps).hardware_flops_utilisation == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("name", ["llm13b", "llm65b", "llm405b"])
def test_no_prediction_is_below_the_minimum(name: str) -> None:
    space = load_space(name)
    layouts = space.layouts()
    estimates = CostModel(space.model, space.precision, space.cluster).estimate(layouts)
    peak = (space.cluster.device.peak_bf16_tflops or 0) * 1e12
    for layout, seconds in zip(layouts, estimates.step_seconds, strict=True):
        least = minimum_step_seconds(
            layout, space.model, peak_flops_per_second=peak, partition="blocks"
        )
        assert 0 < least < seconds


def test_an_unknown_peak_refuses_nothing() -> None:
    space = load_space("tiny")
    spec = a_spec(
        layout=space.layouts()[0], model=space.model, cluster=space.cluster, precision="fp32"
    )
    assert reason(spec, 1e-9) is None


def test_ranks_must_agree_on_the_loss() -> None:
    spec = a_spec()
    steps = [a_step(n, step_seconds=100.0) for n in range(spec.steps)]
    odd = dataclasses.replace(steps[2].ranks[1], loss=8.0)
    steps[2] = dataclasses.replace(steps[2], ranks=(steps[2].ranks[0], odd))
    said = why_impossible(spec, measure(spec, steps), steps, "deepspeed_llm")
    assert said == "step 2: the loss must be the same on all ranks, got 9 on rank 0 and 8 on rank 1"


def losses(*values: float, sequences: int = 8) -> list[FinalLoss]:
    return [
        FinalLoss(trial_id=f"{n + 1:04d}", sequences=sequences, steps=5, loss=value)
        for n, value in enumerate(values)
    ]


def wrong(precision: str, trials: list[FinalLoss]) -> set[str]:
    final_losses = FinalLosses(precision)
    for trial in trials:
        final_losses.add(trial)
    return final_losses.wrong


def is_refused(precision: str, trials: list[FinalLoss]) -> bool:
    """Whether two of the others contradict the last trial."""
    final_losses = FinalLosses(precision)
    *others, last = trials
    for trial in others:
        final_losses.add(trial)
    return final_losses.why_wrong(last, votes=2) is not None


def test_most_losses_stand_and_the_first_among_equals() -> None:
    assert wrong("fp32", losses(9.0, 9.0, 9.00001)) == set()
    assert wrong("fp32", losses(9.0, 8.0)) == {"0002"}
    assert wrong("fp32", losses(9.0, 8.0, 8.0)) == {"0001"}
    assert wrong("fp32", losses(9.0, 8.99)) == {"0002"}
    assert wrong("bf16", losses(9.0, 8.99)) == set()
    others = [dataclasses.replace(x, trial_id="0009") for x in losses(7.0, sequences=16)]
    assert wrong("fp32", [*losses(9.0), *others]) == set(), "another batch, another loss"
    assert not is_refused("fp32", losses(9.0, 8.0))
    assert is_refused("fp32", losses(9.0, 9.0, 8.0))
    assert not is_refused("fp32", losses(8.0, 9.0, 8.0)), "it is the one that is agreed on"


def plainly_wrong(precision: str, trials: list[FinalLoss]) -> set[str]:
    """Each trial compared to each."""
    tolerance = {"fp32": 1e-3, "bf16": 2e-2}[precision]

    def agree(one: FinalLoss, other: FinalLoss) -> bool:
        return math.isclose(one.loss, other.loss, rel_tol=tolerance)

    found = set()
    for trial in trials:
        group = [t for t in trials if (t.sequences, t.steps) == (trial.sequences, trial.steps)]
        reference = max(group, key=lambda one: sum(agree(one, other) for other in group))
        if not agree(trial, reference):
            found.add(trial.trial_id)
    return found


LOSSES = st.one_of(
    st.sampled_from([9.0, 8.991, 9.009, 8.99, 8.82, 9.18, 7.0, 0.0, -9.0]),
    st.floats(8.9, 9.1),
    st.floats(allow_nan=False, allow_infinity=False),
)


@given(
    precision=st.sampled_from(["fp32", "bf16"]),
    trials=st.lists(st.tuples(LOSSES, st.sampled_from([8, 8, 16])), max_size=12),
)
def test_losses_that_are_added_one_by_one_are_judged_as_all_at_once(
    precision: str, trials: list[tuple[float, int]]
) -> None:
    final_losses = FinalLosses(precision)
    added: list[FinalLoss] = []
    for number, (loss, sequences) in enumerate(trials):
        trial = FinalLoss(trial_id=f"{number:04d}", sequences=sequences, steps=5, loss=loss)
        before = plainly_wrong(precision, added)
        added.append(trial)
        after = plainly_wrong(precision, added)
        assert final_losses.add(trial) == (before != after - {trial.trial_id})
        assert final_losses.wrong == after


def probed(*probes: tuple[float, ...]) -> list[StepReport]:
    steps = []
    for number, seconds in enumerate(probes):
        step = a_step(number, ranks=len(seconds))
        ranks = zip(step.ranks, seconds, strict=True)
        steps.append(
            dataclasses.replace(
                step, ranks=tuple(dataclasses.replace(r, probe_seconds=s) for r, s in ranks)
            )
        )
    return steps


def test_a_device_that_is_always_slow_is_named() -> None:
    found = slow_device(probed(*[(1.0, 1.1, 2.0, 0.9)] * 3))
    assert found is not None and (found.rank, found.ratio) == (2, pytest.approx(2.0))


def test_a_device_that_is_slow_by_accident_is_not() -> None:
    accident = probed((1, 1, 1, 1), (1, 1, 3, 1), (1, 1, 1, 1), (1, 1, 3, 1))
    assert slow_device(accident) is None
    assert slow_device(probed((1, 1, 9, 1), *[(1, 1, 1, 1)] * 3)) is None
    assert slow_device(probed((1, 9), (1, 9))) is None, "too few steps"
    assert slow_device([a_step(n) for n in range(4)]) is None, "no probes"
