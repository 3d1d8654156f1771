"""How blocks are dealt to pipeline stages."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.cost.columns import columns_of
from autotune.cost.stages import Partition, blocks_per_stage, stages_of
from autotune.cost.timed_stages import timed_stages_of
from autotune.layout import Layout
from autotune.model import Model
from autotune.named_spaces import load_space
from tests.conftest import examples


def llama(blocks: int, *, vocabulary: int = 1024) -> Model:
    """Blocks of 41,088 parameters, between embeddings of 64 for each word."""
    return Model(
        num_hidden_layers=blocks,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=vocabulary,
        sequence_length=64,
        global_batch_size=8,
    )


models = st.builds(llama, st.integers(1, 9), vocabulary=st.integers(1, 4000))
partitions = st.sampled_from(["blocks", "parameters"])


@given(models, st.integers(1, 9), partitions)
def test_every_block_is_on_one_stage(model: Model, stages: int, partition: Partition) -> None:
    stages = min(stages, model.num_hidden_layers)
    dealt = blocks_per_stage(model, stages, partition)
    assert len(dealt) == stages
    assert sum(dealt) == model.num_hidden_layers
    assert min(dealt) >= 0


@pytest.mark.parametrize(
    ("blocks", "stages", "expected"),
    [
        (8, 1, (8,)),
        (8, 4, (2, 2, 2, 2)),
        (10, 4, (3, 3, 2, 2)),
        (11, 4, (3, 3, 3, 2)),
        (4, 4, (1, 1, 1, 1)),
    ],
)
def test_by_blocks_the_first_stages_get_what_is_left_over(
    blocks: int, stages: int, expected: tuple[int, ...]
) -> None:
    assert blocks_per_stage(llama(blocks), stages, "blocks") == expected


@pytest.mark.parametrize(
    ("space", "expected"), [("llm13b", (9, 11, 11, 9)), ("llm30b", (14, 16, 16, 14))]
)
def test_by_parameters_the_ends_get_fewer_blocks(space: str, expected: tuple[int, ...]) -> None:
    model = load_space(space).model
    assert blocks_per_stage(model, 4, "parameters") == expected


def test_without_a_vocabulary_both_partitions_are_equal_where_stages_divide_blocks() -> None:
    model = llama(12, vocabulary=1)
    for stages in (1, 2, 3, 4, 6):
        assert blocks_per_stage(model, stages, "parameters") == (12 // stages,) * stages


@examples(150)
@given(models, st.integers(2, 5))
def test_no_other_division_by_parameters_has_a_lighter_heaviest_stage(
    model: Model, stages: int
) -> None:
    stages = min(stages, model.num_hidden_layers)
    embedding = model.vocab_size * model.hidden_size
    layers = [embedding, *[model.layer_parameters] * model.num_hidden_layers, embedding]

    def heaviest(ends: tuple[int, ...]) -> int:
        borders = itertools.pairwise((0, *ends, len(layers)))
        return max(sum(layers[start:end]) for start, end in borders)

    inner = range(1, len(layers))
    lightest = min(map(heaviest, itertools.combinations(inner, stages - 1)))
    dealt = blocks_per_stage(model, stages, "parameters")
    # The embedding comes before the first stage's blocks, the head after the last one's.
    ends = tuple(1 + end for end in itertools.accumulate(dealt[:-1]))
    assert heaviest(ends) == pytest.approx(lightest, rel=1e-5)


@given(models, st.integers(1, 9), partitions)
def test_a_stage_between_never_has_more_blocks_than_the_second(
    model: Model, stages: int, partition: Partition
) -> None:
    dealt = blocks_per_stage(model, min(stages, model.num_hidden_layers), partition)
    assert all(blocks <= dealt[1] for blocks in dealt[2:-1])


def test_first_second_and_last_stage_stand_for_all() -> None:
    layouts = [
        Layout(pipeline_parallel=4, gradient_accumulation_steps=8),
        Layout(pipeline_parallel=4, gradient_accumulation_steps=2),
        Layout(pipeline_parallel=2, gradient_accumulation_steps=8),
        Layout(gradient_accumulation_steps=8),
    ]
    stages = stages_of(columns_of(layouts), llama(6), "blocks")
    assert stages.blocks.tolist() == [[2, 2, 1], [2, 2, 1], [3, 3, 3], [6, 6, 6]]
    assert stages.embedding.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]]
    assert stages.head.tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert stages.neighbours.tolist() == [[1, 2, 1], [1, 2, 1], [1, 1, 1], [0, 0, 0]]
    assert stages.in_flight.tolist() == [[4, 3, 1], [2, 2, 1], [2, 1, 1], [1, 1, 1]]


def test_four_stages_stand_for_all_in_the_time_of_a_step() -> None:
    layouts = [
        Layout(pipeline_parallel=6, gradient_accumulation_steps=8),
        Layout(pipeline_parallel=6, gradient_accumulation_steps=3),
        Layout(pipeline_parallel=2, gradient_accumulation_steps=8),
        Layout(gradient_accumulation_steps=8),
    ]
    # Six stages have 3, 3, 3, 2, 2 and 2 blocks.
    timed = timed_stages_of(columns_of(layouts), llama(15), "blocks")
    assert timed.index.T.tolist() == [[0, 2, 4, 5], [0, 2, 4, 5], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert timed.blocks.T.tolist() == [[3, 3, 2, 2], [3, 3, 2, 2], [8, 7, 8, 7], [15, 15, 15, 15]]
    assert timed.blocks_before.T[:3].tolist() == [[0, 6, 11, 13], [0, 6, 11, 13], [0, 8, 0, 8]]
    assert timed.blocks_after.T[:3].tolist() == [[12, 6, 2, 0], [12, 6, 2, 0], [7, 0, 7, 0]]
    # Three micro-batches are all in flight up to the fourth stage.
    assert timed.blocks_alike.T[:2].tolist() == [[0, 0, 0, 0], [8, 2, 0, 0]]
    assert timed.neighbours.T.tolist() == [[1, 2, 2, 1], [1, 2, 2, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert timed.head.T.tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]]
