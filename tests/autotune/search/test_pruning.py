"""What a result rules out, and what it must not."""

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.layout import Layout
from autotune.named_spaces import load_space
from autotune.search import Observation, Unpruned, prune
from autotune.trial.trial import Outcome

SEEN = Layout(
    tensor_parallel=2,
    data_parallel=2,
    micro_batch_size=2,
    gradient_accumulation_steps=4,
    activation_checkpointing="selective",
    sequence_parallel=True,
)


def changed(**dimensions: object) -> Layout:
    return dataclasses.replace(SEEN, **dimensions)


def is_pruned(outcome: Outcome, layout: Layout, seen: Layout = SEEN) -> bool:
    seconds = 1.0 if outcome in (Outcome.OK, Outcome.STOPPED) else None
    observation = Observation(layout=seen, outcome=outcome, step_seconds=seconds)
    return bool(prune(observation, [layout]))


LARGER_BATCH = {"micro_batch_size": 4, "gradient_accumulation_steps": 2}
NEEDS_MORE = [
    LARGER_BATCH,
    {"activation_checkpointing": "none"},
    {"sequence_parallel": False},
    {**LARGER_BATCH, "activation_checkpointing": "none", "sequence_parallel": False},
]
SAYS_NOTHING = [
    {"micro_batch_size": 1, "gradient_accumulation_steps": 8},
    {"activation_checkpointing": "full"},
    {"zero_stage": 0},
    {"zero_stage": 3},
    {"attention_kernel": "math"},
    {**LARGER_BATCH, "activation_checkpointing": "full"},
    {**LARGER_BATCH, "rmsnorm_kernel": "plain"},
    # The step to a single micro-batch frees the gradients that are kept between them.
    {"micro_batch_size": 8, "gradient_accumulation_steps": 1},
    {},
]


@pytest.mark.parametrize("difference", NEEDS_MORE, ids=str)
def test_out_of_memory_rules_out_what_needs_more(difference: dict[str, object]) -> None:
    assert is_pruned(Outcome.OOM, changed(**difference))


@pytest.mark.parametrize("difference", SAYS_NOTHING, ids=str)
def test_out_of_memory_says_nothing_of_the_rest(difference: dict[str, object]) -> None:
    assert not is_pruned(Outcome.OOM, changed(**difference))


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.STOPPED])
def test_what_runs_without_checkpointing_need_not_recompute(outcome: Outcome) -> None:
    seen = changed(activation_checkpointing="none")
    assert is_pruned(outcome, changed(activation_checkpointing="full"), seen)
    assert is_pruned(outcome, changed(activation_checkpointing="selective"), seen)
    assert not is_pruned(outcome, changed(activation_checkpointing="full"), SEEN)


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.CRASHED, Outcome.LOST])
@pytest.mark.parametrize("difference", NEEDS_MORE, ids=str)
def test_other_outcomes_rule_nothing_out(outcome: Outcome, difference: dict[str, object]) -> None:
    assert not is_pruned(outcome, changed(**difference))
    assert not is_pruned(Outcome.OK, changed(**difference))


def test_the_reason_names_the_layout_that_ran_out() -> None:
    observation = Observation(layout=SEEN, outcome=Outcome.OOM, step_seconds=None)
    (pruned,) = prune(observation, [changed(**LARGER_BATCH)])
    assert SEEN.describe() in pruned.reason


offered = load_space("tiny").replaced({"zero_stage": (0, 1, 2)}, what=None).layouts()
layouts = st.sampled_from(offered)
results = st.lists(st.tuples(layouts, st.sampled_from(Outcome)), max_size=30)


@given(results=results, order=st.randoms(use_true_random=False))
def test_looking_only_at_the_group_rules_out_what_looking_at_all_does(
    results: list[tuple[Layout, Outcome]], order: random.Random
) -> None:
    shuffled = order.sample(offered, len(offered))
    unpruned, all_left = Unpruned(shuffled), dict.fromkeys(shuffled)
    for layout, outcome in results:
        observation = Observation(layout=layout, outcome=outcome, step_seconds=None)
        all_left.pop(layout, None)
        expected = prune(observation, all_left)
        assert unpruned.rule_out(observation) == expected
        for found in expected:
            del all_left[found.layout]


def test_a_larger_space_has_more_groups_not_larger_ones() -> None:
    """So the layouts that a result is compared to do not grow with the space."""
    few = load_space("llm13b")
    many = few.replaced({"zero_stage": (0, 1, 2, 3), "torch_compile": (False, True)}, what=None)
    assert len(many.layouts()) > 1.5 * len(few.layouts())
    largest = [
        max(len(groups.like(layout)) for layout in space.layouts())
        for space in (few, many)
        for groups in [Unpruned(space.layouts())]
    ]
    assert largest[0] == largest[1] <= 24, "micro-batch sizes x checkpointing x sequence parallel"
