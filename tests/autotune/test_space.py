"""Legal layouts are generated, every other one has a reason."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.layout import LAYOUT_COLUMNS, SEARCHED, Layout, layout_from_mapping, why_illegal
from autotune.named_spaces import available_spaces, load_space
from autotune.space import Excluded, SearchSpace


@pytest.mark.parametrize("name", available_spaces())
def test_every_generated_layout_is_legal_fills_the_cluster_and_is_there_once(name: str) -> None:
    space = load_space(name)
    layouts = space.layouts()
    assert len(layouts) == len(set(layouts)) > 100
    for layout in layouts:
        assert why_illegal(layout, space.model, space.precision) is None
        assert space.why_not(layout) is None
        assert layout.world_size == space.cluster.devices
        sequences = layout.data_parallel * layout.micro_batch_size
        assert sequences * layout.gradient_accumulation_steps == space.model.global_batch_size


def test_every_combination_is_generated_or_has_a_reason(small_space: SearchSpace) -> None:
    generated = set(small_space.layouts())
    dimensions = [getattr(small_space, name) for name in SEARCHED]
    seen = 0
    for values in itertools.product(*dimensions):
        chosen = dict(zip(SEARCHED, values, strict=True))
        ranks = chosen["tensor_parallel"] * chosen["pipeline_parallel"]
        data = small_space.cluster.devices // ranks
        if data == 0:
            continue
        accumulation = max(1, 8 // (data * chosen["micro_batch_size"]))
        layout = Layout(**chosen, data_parallel=data, gradient_accumulation_steps=accumulation)
        reason = small_space.why_not(layout)
        assert (reason is None) == (layout in generated), (layout, reason)
        seen += layout in generated
    assert seen == len(generated)


def test_names_are_unique() -> None:
    """One name per thing: one stage where nothing is sharded, SP only with TP, no bf16 stage 0."""
    tiny, big = load_space("tiny"), load_space("llm13b")
    for layout in (*tiny.layouts(), *big.layouts()):
        assert layout.data_parallel > 1 or layout.zero_stage == 1
        assert layout.tensor_parallel > 1 or not layout.sequence_parallel
    assert {layout.zero_stage for layout in big.layouts()} == {1, 2, 3}
    assert {layout.zero_stage for layout in tiny.layouts()} == {0, 1, 2, 3}


def test_excluded_branches_carry_rule_and_values() -> None:
    reasons = {e.reason for e in load_space("tiny").walk() if isinstance(e, Excluded)}
    assert "sequence_parallel needs tensor_parallel > 1, got 1" in reasons
    assert "attention_kernel sdpa_cudnn does not run on cpu (has math, sdpa_flash)" in reasons
    assert any("must divide the devices of the cluster, got 4 * 2 and 4" in r for r in reasons)


@pytest.mark.parametrize(
    ("fixed", "sentence"),
    [
        ({"tensor_parallel": [3]}, None),
        ({"tensor_parallel": [0]}, "tensor_parallel"),
        ({"attention_kernel": ["fast"]}, "attention_kernel"),
        ({"context_parallel": [2]}, "context parallelism (context_parallel) is not offered yet"),
        ({"speed": [2]}, "dimension must be one of"),
        ({"zero_stage": []}, "zero_stage must have at least one value"),
        ({"zero_stage": [1, 1]}, "zero_stage must not repeat a value"),
    ],
)
def test_restrictions(fixed: dict[str, list[object]], sentence: str | None) -> None:
    tiny = load_space("tiny")
    if sentence is None:
        assert tiny.restricted(fixed).layouts() == []
        return
    with pytest.raises(InputError) as error:
        tiny.restricted(fixed)
    assert sentence in str(error.value)


def test_restriction_keeps_exactly_the_layouts_with_those_values() -> None:
    tiny = load_space("tiny")
    kept = tiny.restricted({"tensor_parallel": [2], "data_parallel": [2]}).layouts()
    assert kept == [x for x in tiny.layouts() if (x.tensor_parallel, x.data_parallel) == (2, 2)]


def test_a_space_can_be_a_file(tmp_path) -> None:
    file = tmp_path / "mein raum ü.py"
    file.write_text(
        "import dataclasses\n"
        "from search_spaces import tiny\n"
        "def space():\n"
        "    return dataclasses.replace(tiny.space(), name='mine', max_trials=3)\n"
    )
    assert load_space(str(file)).max_trials == 3
    file.write_text("def space():\n    return 1 / 0\n")
    with pytest.raises(InputError, match="division by zero"):
        load_space(str(file))
    file.write_text("x = 1\n")
    with pytest.raises(InputError, match=r"must define a function space\(\)"):
        load_space(str(file))


layouts = st.builds(
    Layout,
    tensor_parallel=st.sampled_from([1, 2, 4]),
    pipeline_parallel=st.sampled_from([1, 2, 4]),
    data_parallel=st.sampled_from([1, 2]),
    zero_stage=st.integers(0, 3),
    micro_batch_size=st.sampled_from([1, 2, 4]),
    sequence_parallel=st.booleans(),
)


@given(layouts)
def test_layout_survives_its_columns(layout: Layout) -> None:
    model = load_space("tiny").model
    sequences = layout.data_parallel * layout.micro_batch_size
    layout = dataclasses.replace(layout, gradient_accumulation_steps=8 // sequences)
    assert tuple(layout.columns()) == LAYOUT_COLUMNS
    assert layout_from_mapping(layout.columns(), model) == layout
    assert (
        layout.world_size
        == layout.tensor_parallel * layout.pipeline_parallel * layout.data_parallel
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model_parallel": 2}, "layout: unknown key model_parallel"),
        ({"fp8": True}, "layout: FP8 (fp8) is not offered yet"),
        ({"zero_stage": 4}, "zero_stage must be less than or equal to 3, got 4"),
        ({"micro_batch_size": 3}, "must divide global_batch_size, got 1 * 3 and 8"),
        ({"gradient_accumulation_steps": 3}, "= 8, got 3"),
        ({"sequence_parallel": "yes"}, "sequence_parallel must be a valid boolean, got 'yes'"),
    ],
)
def test_bad_layouts_are_one_sentence(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        layout_from_mapping(values, load_space("tiny").model)
    assert sentence in str(error.value)
