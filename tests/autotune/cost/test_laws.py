"""Laws that hold for every model, cluster and layout, whatever the constants are."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.cluster import Cluster
from autotune.cost.columns import columns_of
from autotune.cost.matrix_products import tile_efficiency
from autotune.cost.memory import block_activation_bytes
from autotune.cost.model import CostModel, Estimates, fit_probability
from autotune.cost.trainers import known_trainers
from autotune.errors import InputError
from autotune.hardware import device_named, unknown_gpu
from autotune.layout import Layout
from autotune.model import Experts, LatentAttention, Model
from autotune.named_spaces import load_space
from tests.conftest import examples

A100 = device_named("a100-80gb")
# A single multiprocessor has no waves: every matrix product is as fast as can be.
WITHOUT_WAVES = dataclasses.replace(A100, multiprocessors=1)
LLAMA = Model(
    num_hidden_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=32_768,
    sequence_length=4096,
    global_batch_size=64,
)


def on(devices: int, device: Any = A100, **changes: Any) -> Cluster:
    per_node = min(8, devices)
    return Cluster(nodes=devices // per_node, gpus_per_node=per_node, device=device, **changes)


# What distinguishes architectures, beside Llama.
OF_ARCHITECTURES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True, "qkv_bias": True},
    {"gated_feed_forward": False, "activation": "gelu", "norm": "layernorm", "mlp_bias": True},
    {"norm_placement": "around", "sliding_window": 512, "global_every": 6, "qk_norm": "heads"},
    {"norm_placement": "after", "qk_norm": "projection"},
    {"parallel_residual": True, "rotary_fraction": 0.25},
    {"experts": Experts(count=8, per_token=2, intermediate_size=4096)},
    {
        "experts": Experts(
            count=64,
            per_token=6,
            intermediate_size=1408,
            shared_intermediate_size=2816,
            dense_layers=1,
        ),
        "latent_attention": LatentAttention(
            query_rank=1536,
            key_value_rank=512,
            plain_head_size=128,
            rotated_head_size=64,
            value_head_size=128,
        ),
    },
]


@st.composite
def cases(draw: st.DrawFn, **fixed: st.SearchStrategy[Any]) -> tuple[CostModel, Layout]:
    """A layout of a model of billions of parameters on exactly the devices that it needs."""
    size = st.sampled_from([1, 2, 4, 8])
    values = {
        "tensor_parallel": size,
        "pipeline_parallel": size,
        "data_parallel": size,
        "micro_batch_size": st.sampled_from([1, 2, 4]),
        "gradient_accumulation_steps": st.integers(1, 16),
        "activation_checkpointing": st.sampled_from(["none", "selective", "full"]),
        "attention_kernel": st.sampled_from(["math", "sdpa_flash", "flash1", "flash2"]),
        "rmsnorm_kernel": st.sampled_from(["plain", "fused"]),
        "torch_compile": st.booleans(),
        **fixed,
    }
    layout = Layout(**{name: draw(strategy) for name, strategy in values.items()})
    sharded = layout.tensor_parallel > 1 and draw(st.booleans())
    trainer = draw(st.sampled_from(sorted(known_trainers())))
    stages = known_trainers()[trainer].sharding
    most = 3 if layout.pipeline_parallel == 1 else 1
    stage = draw(st.sampled_from([stage for stage in stages if stage <= most]))
    layout = dataclasses.replace(layout, sequence_parallel=sharded, zero_stage=stage)
    heads = draw(st.sampled_from([32, 40, 64]))
    model = Model(
        num_hidden_layers=draw(st.integers(2 * layout.pipeline_parallel, 48)) + 8,
        hidden_size=128 * heads,
        intermediate_size=draw(st.integers(40, 90)) * 256,
        num_attention_heads=heads,
        num_key_value_heads=draw(st.sampled_from([8, heads])),
        vocab_size=draw(st.sampled_from([32_000, 128_000])),
        sequence_length=draw(st.sampled_from([1024, 2048, 8192])),
        global_batch_size=(
            layout.data_parallel * layout.micro_batch_size * layout.gradient_accumulation_steps
        ),
        **draw(st.sampled_from(OF_ARCHITECTURES)),
    )
    return CostModel(model, "bf16", on(layout.world_size), trainer=trainer), layout


one = st.just(1)


def estimated(model: CostModel, layout: Layout, **changes: Any) -> Estimates:
    return model.estimate([dataclasses.replace(layout, **changes)])


def seconds(model: Model, cluster: Cluster, layout: Layout, **constants: float) -> dict[str, float]:
    """Step time parts of one layout by name; `constants` replace single ones."""
    cost = CostModel(model, "bf16", cluster)
    return _plain(cost.estimate([layout], {**cost.constants, **constants}).time)


def gib(cost: CostModel, layout: Layout, **changes: Any) -> dict[str, float]:
    """Memory parts of one layout by name."""
    return _plain(estimated(cost, layout, **changes).memory)


def _plain(parts: Any) -> dict[str, float]:
    return {field.name: float(getattr(parts, field.name)[0]) for field in dataclasses.fields(parts)}


def states_gib(memory: dict[str, float]) -> float:
    return memory["weights"] + memory["gradients"] + memory["optimiser"]


@given(cases())
def test_parts_are_not_negative_and_add_up(case: tuple[CostModel, Layout]) -> None:
    cost, layout = case
    found = cost.estimate([layout])
    for parts, total in (
        (found.time, found.step_seconds),
        (found.memory, found.peak_memory_gib),
    ):
        by_name = _plain(parts)
        assert all(part >= 0 for part in by_name.values()), by_name
        assert sum(by_name.values()) == pytest.approx(float(total[0]), rel=1e-12)
        assert 0 < float(total[0]) < float("inf")


@given(cases(tensor_parallel=one))
def test_without_tensor_parallelism_there_are_no_collectives_in_blocks(
    case: tuple[CostModel, Layout],
) -> None:
    assert estimated(*case).time.tensor_parallel == 0


@given(cases(data_parallel=one))
def test_without_data_parallelism_nothing_is_reduced(case: tuple[CostModel, Layout]) -> None:
    assert estimated(*case).time.data_parallel == 0


@given(cases(pipeline_parallel=one))
def test_without_stages_there_is_no_bubble_and_no_transfer(case: tuple[CostModel, Layout]) -> None:
    time = estimated(*case).time
    assert time.pipeline_bubble == 0
    assert time.stage_transfers == 0


@given(cases(), st.sampled_from(["tensor_parallel", "pipeline_parallel", "data_parallel"]))
def test_every_kind_of_parallelism_costs_communication(
    case: tuple[CostModel, Layout], dimension: str
) -> None:
    cost, layout = case
    layout = dataclasses.replace(layout, zero_stage=1, **{dimension: 4})
    time = CostModel(cost.setting.model, "bf16", on(layout.world_size)).estimate([layout]).time
    cause = "stage_transfers" if dimension == "pipeline_parallel" else dimension
    assert float(getattr(time, cause)[0]) > 0


@given(
    cases(
        pipeline_parallel=one,
        data_parallel=st.sampled_from([2, 4, 8]),
        gradient_accumulation_steps=st.integers(2, 16),
    )
)
def test_a_higher_zero_stage_never_needs_more_memory(case: tuple[CostModel, Layout]) -> None:
    cost, layout = case
    cost = CostModel(cost.setting.model, "bf16", on(layout.world_size))
    first, second, third = (gib(cost, layout, zero_stage=stage) for stage in (1, 2, 3))
    # Both hold the same during the update.
    assert sum(first.values()) >= sum(second.values())
    # What stage 3 gathers is not counted.
    assert states_gib(second) > states_gib(third)


def test_the_peak_of_a_large_model_falls_with_the_zero_stage() -> None:
    cost = CostModel(LLAMA, "bf16", on(8))
    layout = Layout(data_parallel=8, gradient_accumulation_steps=8)
    peaks = [sum(gib(cost, layout, zero_stage=stage).values()) for stage in (1, 2, 3)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[2] < 0.7 * peaks[0]


@given(cases())
def test_recomputing_more_never_needs_more_memory_and_never_less_work(
    case: tuple[CostModel, Layout],
) -> None:
    cost, layout = case
    found = cost.estimate(
        [
            dataclasses.replace(layout, activation_checkpointing=value)
            for value in ("none", "selective", "full")
        ]
    )
    none, selective, full = found.peak_memory_gib
    assert full <= selective <= none
    # A full memory slows a step down: what recomputation saves there is another matter.
    none, selective, full = found.step_seconds - found.time.memory_pressure
    assert none < selective < full


def test_what_is_recomputed_at_the_end_goes_as_the_gradients_come() -> None:
    # Of a single micro-batch all gradients, in bf16 and with tens of billions of parameters, are
    # more than the activations: the end of the backward pass decides, where recomputed blocks have
    # nothing that kept ones have not.
    wide = dataclasses.replace(
        LLAMA, num_hidden_layers=36, hidden_size=8192, intermediate_size=19712,
        num_attention_heads=64, vocab_size=32_000, sequence_length=8192, global_batch_size=8,
    )  # fmt: skip
    cost = CostModel(wide, "bf16", on(64))
    layout = Layout(pipeline_parallel=8, data_parallel=8)
    kept, recomputed = (
        sum(gib(cost, layout, activation_checkpointing=value).values())
        for value in ("none", "full")
    )
    assert recomputed <= kept


def test_a_stage_without_blocks_recomputes_no_scores() -> None:
    # By parameters, the last of eight stages has the head alone; it needs the most memory.
    model = dataclasses.replace(
        LLAMA, num_hidden_layers=24, intermediate_size=10240, vocab_size=128_000
    )
    cost = CostModel(model, "bf16", on(64), trainer="hagemann2023")
    layout = Layout(pipeline_parallel=8, tensor_parallel=8, attention_kernel="math")
    found = [
        gib(cost, layout, activation_checkpointing=value, sequence_parallel=True)
        for value in ("none", "selective", "full")
    ]
    assert found[0]["activations"] == found[1]["activations"] == found[2]["activations"]


def test_where_memory_is_ample_full_recomputation_is_slower() -> None:
    space = load_space("llm13b").restricted({"activation_checkpointing": ["none"]})
    cost = CostModel(space.model, "bf16", space.cluster)
    layouts = space.layouts()
    kept = cost.estimate(layouts)
    recomputed = cost.estimate(
        [dataclasses.replace(x, activation_checkpointing="full") for x in layouts]
    )
    fits = kept.fit_probability > 0.5
    assert fits.sum() > 500
    assert (recomputed.step_seconds > kept.step_seconds)[fits].all()


@given(cases(tensor_parallel=st.sampled_from([2, 4, 8])))
def test_sequence_parallelism_never_needs_more_memory(case: tuple[CostModel, Layout]) -> None:
    cost, layout = case
    whole, sharded = (
        float(estimated(cost, layout, sequence_parallel=value).peak_memory_gib[0])
        for value in (False, True)
    )
    assert sharded <= whole


def test_sequence_parallelism_saves_memory_where_activations_are_large() -> None:
    cost = CostModel(LLAMA, "bf16", on(8))
    layout = Layout(tensor_parallel=8, micro_batch_size=8, gradient_accumulation_steps=8)
    sharded = gib(cost, layout, sequence_parallel=True)
    assert sharded["activations"] < 0.8 * gib(cost, layout)["activations"]


@given(cases())
def test_a_larger_micro_batch_needs_more_activation_memory(case: tuple[CostModel, Layout]) -> None:
    cost, layout = case
    doubled = dataclasses.replace(layout, micro_batch_size=2 * layout.micro_batch_size)
    tensors, scores = block_activation_bytes(
        columns_of([layout, doubled]), cost.setting, cost.constants
    )
    assert tensors[1] == 2 * tensors[0] > 0
    assert scores[1] == 2 * scores[0] >= 0
    small, large = cost.estimate([layout, doubled]).peak_memory_gib
    assert small <= large


def test_activations_of_one_stage_grow_in_proportion_to_the_micro_batch() -> None:
    cost = CostModel(LLAMA, "bf16", on(64))
    layout = Layout(data_parallel=64, gradient_accumulation_steps=2)
    once, thrice, sixfold = (gib(cost, layout, micro_batch_size=size) for size in (1, 3, 6))
    assert once["activations"] > 5
    # In part they take the place of the logits, of which there are not three times as many.
    assert thrice["activations"] == pytest.approx(3 * once["activations"], rel=0.01)
    # 8,192 tokens of logits exist at once at most, and the matrix's own gradient does not grow.
    assert 1.5 * once["logits"] < thrice["logits"] < 3 * once["logits"]
    assert sixfold["logits"] < 1.5 * thrice["logits"]
    assert states_gib(thrice) == states_gib(once)


@given(cases(pipeline_parallel=st.sampled_from([2, 4, 8])))
def test_more_micro_batches_shrink_the_share_of_the_bubble(case: tuple[CostModel, Layout]) -> None:
    cost, layout = case
    steps = layout.gradient_accumulation_steps
    found = cost.estimate(
        [dataclasses.replace(layout, gradient_accumulation_steps=n * steps) for n in (1, 2, 4)]
    )
    few_batches, more, most = found.time.pipeline_bubble / found.step_seconds
    assert 0 < most < more < few_batches < 1


def test_a_stage_holds_no_more_micro_batches_than_there_are() -> None:
    cost = CostModel(LLAMA, "bf16", on(4))
    layout = Layout(pipeline_parallel=4, micro_batch_size=4)
    held = [
        gib(cost, layout, gradient_accumulation_steps=count)["activations"]
        for count in (1, 2, 4, 8)
    ]
    assert held[0] < held[1] < held[2] == held[3]


@given(cases(pipeline_parallel=one))
def test_twice_the_replicas_halve_the_matrix_products_of_a_step(
    case: tuple[CostModel, Layout],
) -> None:
    cost, layout = case
    layout = dataclasses.replace(
        layout, gradient_accumulation_steps=2 * layout.gradient_accumulation_steps
    )
    halved = dataclasses.replace(
        layout,
        data_parallel=2 * layout.data_parallel,
        gradient_accumulation_steps=layout.gradient_accumulation_steps // 2,
    )
    model, trainer = cost.setting.model, cost.trainer_name
    before, after = (
        float(
            CostModel(model, "bf16", on(some.world_size), trainer=trainer)
            .estimate([some])
            .time.matrix_products[0]
        )
        for some in (layout, halved)
    )
    assert 0 < after == before / 2


@given(cases(pipeline_parallel=one))
def test_twice_the_peak_halves_matrix_products_and_nothing_that_memory_decides(
    case: tuple[CostModel, Layout],
) -> None:
    cost, layout = case
    assert A100.peak_bf16_tflops is not None
    faster = dataclasses.replace(A100, peak_bf16_tflops=2 * A100.peak_bf16_tflops)
    before, after = (
        _plain(
            CostModel(cost.setting.model, "bf16", on(layout.world_size, device))
            .estimate([layout])
            .time
        )
        for device in (A100, faster)
    )
    assert after["matrix_products"] == before["matrix_products"] / 2
    for cause in ("element_wise", "optimiser"):
        assert after[cause] == before[cause]
    # A shorter pass hides less, of communication and of the host's time.
    for cause in ("tensor_parallel", "data_parallel", "launch"):
        assert after[cause] >= before[cause]


def test_twice_the_memory_bandwidth_halves_element_wise_work_and_the_optimiser() -> None:
    assert A100.memory_gb_per_second is not None
    faster = dataclasses.replace(A100, memory_gb_per_second=2 * A100.memory_gb_per_second)
    layout = Layout(data_parallel=8, gradient_accumulation_steps=8)
    before, after = (seconds(LLAMA, on(8, device), layout) for device in (A100, faster))
    assert after["element_wise"] == before["element_wise"] / 2
    assert after["optimiser"] == before["optimiser"] / 2
    assert after["matrix_products"] == before["matrix_products"]
    assert after["data_parallel"] == before["data_parallel"]


def test_a_model_twice_as_wide_has_four_times_the_matrix_products() -> None:
    wide = dataclasses.replace(
        LLAMA,
        hidden_size=2 * LLAMA.hidden_size,
        intermediate_size=2 * LLAMA.intermediate_size,
        num_attention_heads=2 * LLAMA.num_attention_heads,
        num_key_value_heads=2 * LLAMA.num_key_value_heads,
    )
    layout, cluster = Layout(gradient_accumulation_steps=64), on(1, WITHOUT_WAVES)
    before, after = (seconds(model, cluster, layout) for model in (LLAMA, wide))
    assert after["matrix_products"] == pytest.approx(4 * before["matrix_products"])
    assert after["attention"] == pytest.approx(2 * before["attention"])
    assert after["element_wise"] == pytest.approx(2 * before["element_wise"])
    assert after["launch"] == pytest.approx(before["launch"])


def test_sequences_twice_as_long_have_four_times_the_attention() -> None:
    longer = dataclasses.replace(LLAMA, sequence_length=2 * LLAMA.sequence_length)
    layout, cluster = Layout(gradient_accumulation_steps=64), on(1, WITHOUT_WAVES)
    before, after = (seconds(model, cluster, layout) for model in (LLAMA, longer))
    assert after["attention"] == pytest.approx(4 * before["attention"])
    assert after["matrix_products"] == pytest.approx(2 * before["matrix_products"])
    assert after["optimiser"] == before["optimiser"]


@pytest.mark.parametrize(
    ("rows", "columns", "multiprocessors", "efficiency"),
    [
        (128 * 108, 256, 108, 1.0),
        (256, 128 * 108, 108, 1.0),
        # 109 large tiles are two waves of 108; 218 small ones are three, which is better.
        (128 * 109, 256, 108, 0.95 * 218 / 324),
        # One small tile keeps one of two busy, at 95 %; two of them are better than one large.
        (128, 128, 2, 0.95 / 2),
        (256, 128, 2, 0.95),
        # Half of the tile's columns are computed for nothing.
        (128, 64, 4, 0.95 / 4 / 2),
        (7, 13, 1, 1.0),
    ],
)
def test_tiles_run_in_waves(
    rows: int, columns: int, multiprocessors: int, efficiency: float
) -> None:
    found = tile_efficiency(np.array([float(rows)]), np.array([float(columns)]), multiprocessors)
    assert found == pytest.approx(efficiency)


def test_tiles_that_do_not_fill_the_device_cost_time() -> None:
    layout = Layout(gradient_accumulation_steps=64)
    whole, ragged = (
        seconds(LLAMA, on(1, device), layout)["matrix_products"] for device in (WITHOUT_WAVES, A100)
    )
    assert whole < ragged < 1.5 * whole


def test_collectives_in_blocks_by_hand() -> None:
    # Two all-reduces forward and two backward of 4096 tokens x 4096 x 2 bytes; at size 4 a ring
    # moves 3/2 of that: 4 x 50,331,648 bytes in each of 32 blocks, for 16 micro-batches.
    layout = Layout(tensor_parallel=4, gradient_accumulation_steps=16)
    nothing_hidden = {"link_latency_seconds": 0, "overlap": 0}
    found = seconds(LLAMA, on(4), layout, link_efficiency=0.5, **nothing_hidden)
    # Half of the A100's 300 GB/s in one direction.
    assert found["tensor_parallel"] == pytest.approx(4 * 50_331_648 * 32 * 16 / 150e9)


def test_attention_by_hand() -> None:
    # Scores and weighted values are 4 x 4096^2 x 4096 FLOPs forward in each of 32 blocks, for 64
    # micro-batches. A fused kernel computes half of them, and backward 2.5 times as many.
    layout, all_scores = Layout(gradient_accumulation_steps=64), 4 * 4096**3 * 32 * 64
    constants = {
        "attention.sdpa_flash.efficiency": 0.5,
        "attention.math.efficiency": 0.5,
        "attention.math.score_traffic": 60.0,
    }
    fused = seconds(LLAMA, on(1), layout, **constants)
    assert fused["attention"] == pytest.approx(0.5 * 3.5 * all_scores / (0.5 * 312e12))
    # In single operations backward is twice forward, and 60 bytes for each of 4096^2 scores of 32
    # heads pass through the memory.
    plain = seconds(LLAMA, on(1), dataclasses.replace(layout, attention_kernel="math"), **constants)
    traffic = 60 * 4096**2 * 32 * 32 * 64 / 2039e9
    assert plain["attention"] == pytest.approx(3 * all_scores / (0.5 * 312e12) + traffic)


def test_reduction_of_gradients_by_hand() -> None:
    # Our ZeRO 1 over 8 replicas: 7/8 of the bf16 gradients to who needs them, then of the weights.
    # Parameters of a block: 2 x 4096^2 + 2 x 4096 x 1024 + 3 x 4096 x 14336 + 2 x 4096; of an
    # embedding 32768 x 4096.
    parameters = 32 * 218_112_000 + 2 * 134_217_728
    layout = Layout(data_parallel=8, gradient_accumulation_steps=8)
    found = seconds(
        LLAMA, on(8), layout, link_efficiency=0.5, overlap=0, message_parameters=parameters
    )
    latencies = 2 * (8.4e-6 + 7 * 3.4e-6)
    seconds_expected = 2 * 7 / 8 * 2 * parameters / 150e9 + latencies
    assert found["data_parallel"] == pytest.approx(seconds_expected)


def test_the_optimiser_by_hand() -> None:
    parameters = 32 * 218_112_000 + 2 * 134_217_728
    layout = Layout(data_parallel=8, gradient_accumulation_steps=8)
    traffic = {"optimizer_traffic": 40, "gradient_traffic": 8, "accumulation_traffic": 6}
    found = seconds(LLAMA, on(8), layout, **traffic)
    # 40 bytes per parameter of the rank's eighth, 8 per parameter, and 6 for each of the seven
    # micro-batches whose gradients are added to the first's; 2039 GB/s.
    assert found["optimiser"] == pytest.approx(parameters * (40 / 8 + 8 + 6 * 7) / 2039e9)


def test_fp32_doubles_weights_and_activations() -> None:
    layout = Layout(data_parallel=8, gradient_accumulation_steps=8)
    half, whole = (
        gib(CostModel(LLAMA, precision, on(8)), layout) for precision in ("bf16", "fp32")
    )
    assert whole["weights"] == 2 * half["weights"]
    assert whole["logits"] == pytest.approx(2 * half["logits"])
    assert 1.9 * half["activations"] < whole["activations"] <= 2 * half["activations"]


def test_weights_by_hand() -> None:
    layout = Layout(tensor_parallel=2, gradient_accumulation_steps=64)
    parameters = 32 * 218_112_000 + 2 * 134_217_728
    assert gib(CostModel(LLAMA, "bf16", on(2)), layout)["weights"] == parameters / 2**30


@given(st.floats(0.01, 10), st.floats(1.01, 3), st.floats(0.01, 0.3))
def test_fit_probability_falls_with_memory(share: float, more: float, spread: float) -> None:
    small, large = fit_probability(np.array([share, share * more]), spread)
    assert 0 <= large <= small <= 1
    if abs(np.log(share * more)) < 30 * spread:
        assert large < small


@given(st.floats(0.001, 1))
def test_at_the_capacity_a_layout_fits_as_likely_as_not(spread: float) -> None:
    assert fit_probability(np.array([1.0]), spread) == 0.5


def test_a_budget_per_rank_replaces_the_devices_memory() -> None:
    layout = Layout(data_parallel=8, gradient_accumulation_steps=8)
    cost = CostModel(LLAMA, "bf16", on(8))
    peak = float(cost.estimate([layout]).peak_memory_gib[0])
    exact = peak / cost.constants["usable_memory"]
    tight, even, ample = (
        CostModel(LLAMA, "bf16", on(8, memory_gib=budget)).estimate([layout])
        for budget in (0.9 * exact, exact, 1.1 * exact)
    )
    assert float(even.fit_probability[0]) == pytest.approx(0.5)
    assert float(tight.fit_probability[0]) < 0.2
    assert float(ample.fit_probability[0]) > 0.8
    assert even.capacity_gib == pytest.approx(peak)


def test_a_full_memory_slows_a_step_down() -> None:
    layout = Layout(data_parallel=8, gradient_accumulation_steps=8)
    slow_downs = [
        float(found.time.memory_pressure[0] / found.step_seconds[0])
        for found in (
            CostModel(LLAMA, "bf16", on(8, memory_gib=budget)).estimate([layout])
            for budget in (400, 80, 60)
        )
    ]
    assert slow_downs == sorted(slow_downs)
    assert slow_downs[0] < 0.002


@examples(15)
@given(st.data())
def test_many_layouts_at_once_are_estimated_as_each_alone(data: st.DataObject) -> None:
    space = load_space("llm13b")
    layouts = data.draw(st.lists(st.sampled_from(space.layouts()), min_size=2, max_size=12))
    cost = CostModel(space.model, "bf16", space.cluster)
    together = cost.estimate(layouts)
    for number, layout in enumerate(layouts):
        alone = cost.estimate([layout])
        for parts in ("time", "memory"):
            ours = getattr(together, parts)
            for field in dataclasses.fields(ours):
                expected = float(getattr(getattr(alone, parts), field.name)[0])
                found = float(getattr(ours, field.name)[number])
                assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), field.name
        assert together.fit_probability[number] == pytest.approx(alone.fit_probability[0])


def test_no_layouts_are_no_estimates() -> None:
    found = CostModel(LLAMA, "bf16", on(8)).estimate([])
    assert len(found.step_seconds) == len(found.peak_memory_gib) == 0


def test_a_device_that_is_not_known_well_enough_is_refused_with_what_to_state() -> None:
    with pytest.raises(InputError) as error:
        CostModel(LLAMA, "bf16", on(8, unknown_gpu("x9")))
    assert str(error.value) == (
        "device x9 is not known well enough to estimate a layout: peak_bf16_tflops, memory_gib, "
        "memory_gb_per_second and multiprocessors of its hardware file must be given, got null"
    )
