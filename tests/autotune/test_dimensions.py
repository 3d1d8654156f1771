"""A dimension is declared once: everything that goes through all dimensions sees each of them."""

import dataclasses
import re

import numpy as np
import pytest

from autotune.cost.columns import Columns
from autotune.layout import (
    DIMENSIONS,
    LAYOUT_COLUMNS,
    NOT_OFFERED,
    RESTRICTABLE,
    SEARCHED,
    Layout,
    value_type,
)
from autotune.named_spaces import load_space
from autotune.search.correction import features_of
from autotune.space import SearchSpace
from autotune.store.record import LAYOUT_FIELDS, PRUNED_SCHEMA, TRIAL_SCHEMA

# A value other than the default, in a layout where it is legal.
OTHER = {
    "tensor_parallel": 2,
    "pipeline_parallel": 4,
    "data_parallel": 8,
    "zero_stage": 2,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 3,
    "activation_checkpointing": "selective",
    "sequence_parallel": True,
    "attention_kernel": "math",
    "rmsnorm_kernel": "plain",
    "torch_compile": True,
}


def changed(dimension: str) -> list[Layout]:
    return [Layout(), dataclasses.replace(Layout(), **{dimension: OTHER[dimension]})]


def test_every_dimension_is_among_the_tests() -> None:
    assert set(OTHER) == set(DIMENSIONS) == set(LAYOUT_COLUMNS)
    assert not set(NOT_OFFERED) & set(DIMENSIONS)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_another_value_is_another_column_of_the_cost_model(dimension: str) -> None:
    columns = Columns(changed(dimension))
    declared = DIMENSIONS[dimension]
    differences = [np.ptp(getattr(columns, name)) for name in declared.columns]
    if declared.is_category:
        (kinds, places) = columns._categories[dimension]
        assert [kinds[place] for place in places] == [getattr(Layout(), dimension), "math"]
    assert any(differences) or declared.is_category


@pytest.mark.parametrize("dimension", SEARCHED)
def test_another_value_is_another_place_for_the_gaussian_process(dimension: str) -> None:
    here, there = features_of(changed(dimension))
    if DIMENSIONS[dimension].is_implementation:
        assert (here == there).all(), "kernels have constants of their own"
    else:
        assert 0.5 <= np.linalg.norm(here - there) <= 4, "of the order of a doubling"


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_another_value_is_another_row(dimension: str) -> None:
    for schema in (TRIAL_SCHEMA, PRUNED_SCHEMA):
        assert dimension in schema.names
    types = {field.name: str(field.type) for field in LAYOUT_FIELDS}
    expected = {int: "int64", str: "string", bool: "bool"}
    assert types[dimension] == expected[value_type(dimension)]
    rows = [layout.columns() for layout in changed(dimension)]
    assert rows[0] != rows[1]


@pytest.mark.parametrize("dimension", SEARCHED)
def test_another_value_has_another_description(dimension: str) -> None:
    one, other = (layout.describe() for layout in changed(dimension))
    assert one != other


@pytest.mark.parametrize("dimension", RESTRICTABLE)
def test_a_space_offers_the_declared_values_and_can_be_restricted(dimension: str) -> None:
    tiny = load_space("tiny")
    plain = SearchSpace(name="plain", model=tiny.model, cluster=tiny.cluster)
    assert getattr(plain, dimension) == DIMENSIONS[dimension].values
    restricted = tiny.restricted({dimension: [OTHER[dimension]]})
    assert getattr(restricted, dimension) == (OTHER[dimension],)


@pytest.mark.parametrize("dimension", [d for d in DIMENSIONS if DIMENSIONS[d].rule])
def test_a_rule_names_its_dimension_and_the_values(dimension: str) -> None:
    """Of everything that the shipped spaces do not generate."""
    reasons = {
        found.reason
        for name in ("tiny", "llm13b", "llm30b_8k")
        for found in load_space(name).walk()
        if not isinstance(found, Layout) and list(found.chosen)[-1] == dimension
    }
    if dimension == "tensor_parallel":
        reasons = {found for found in [_why_three()] if found}
    assert reasons, "no shipped space shows this rule"
    for reason in reasons:
        assert dimension in reason or "ZeRO" in reason
        assert re.search(r"got |has ", reason), reason


def _why_three() -> str | None:
    space = load_space("llm13b").restricted({"tensor_parallel": [3]})
    return next(found.reason for found in space.walk() if not isinstance(found, Layout))


def test_branches_that_are_not_generated_are_counted_in_layouts() -> None:
    space = load_space("tiny")
    found = list(space.walk())
    generated = sum(isinstance(one, Layout) for one in found)
    excluded = sum(one.combinations for one in found if not isinstance(one, Layout))
    combinations = np.prod([len(getattr(space, name)) for name in SEARCHED])
    assert generated + excluded == combinations
