"""Every layout trains the same model: its losses and gradient norms are those of one process."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.layout import Layout, layout_from_mapping, why_illegal
from autotune.model import Model
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from tests.trainables.reference import plain_training
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.launch import DeepSpeedLlm

STEPS = 5
TOLERANCE = 1e-5
# bf16 keeps 8 bits: one rounding of a loss of about 6 is 0.02.
BF16_TOLERANCE = 0.03
EVERY_HEAD_ITS_OWN = Model(
    num_hidden_layers=8,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=8,
    num_key_value_heads=8,
    vocab_size=512,
    sequence_length=16,
    global_batch_size=8,
)
GROUPED_QUERY = dataclasses.replace(EVERY_HEAD_ITS_OWN, num_key_value_heads=4)


def model_for(layout: Layout) -> Model:
    """Grouped-query attention wherever tensor parallelism leaves each rank a key-value head."""
    return EVERY_HEAD_ITS_OWN if layout.tensor_parallel == 8 else GROUPED_QUERY


def all_layouts() -> list[Layout]:
    """All sizes of 1 to 8 ranks, each with ZeRO stages, and the other dimensions in turn."""
    others = itertools.cycle(
        {
            "activation_checkpointing": checkpointing,
            "attention_kernel": attention,
            "rmsnorm_kernel": norm,
        }
        for checkpointing, (attention, norm) in itertools.product(
            ("none", "selective", "full"),
            (("math", "plain"), ("sdpa_flash", "fused")),
        )
    )
    return [
        layout_from_mapping({**sizes, **next(others)}, EVERY_HEAD_ITS_OWN)
        for sizes in _legal_sizes()
    ]


def _legal_sizes() -> Iterator[dict[str, Any]]:
    for tensor, pipeline, data in itertools.product(range(1, 9), repeat=3):
        if tensor * pipeline * data > 8:
            continue
        for stage, sequence_parallel in itertools.product(range(4), (False, True)):
            if stage != 1 and data == 1:
                continue
            sizes = {
                "tensor_parallel": tensor,
                "pipeline_parallel": pipeline,
                "data_parallel": data,
                "zero_stage": stage,
                "sequence_parallel": sequence_parallel,
                "micro_batch_size": 2 if data <= 4 else 1,
            }
            if 8 % (data * sizes["micro_batch_size"]):
                continue
            layout = layout_from_mapping(sizes, EVERY_HEAD_ITS_OWN)
            if why_illegal(layout, model_for(layout), "fp32") is None:
                yield sizes


ALL = all_layouts()
# Of up to six ranks, of which two cores run a step in good time; how they are spread is tested.
SAMPLE = [layout for layout in ALL if layout.world_size <= 6][3::5]


def train(
    layout: Layout, model: Model, host: LocalHost, precision: str = "fp32", **changes: Any
) -> tuple[list[float], list[float]]:
    values = {
        "trial_id": "same-numbers",
        "layout": layout,
        "model": model,
        "cluster": Cluster(nodes=1, gpus_per_node=layout.world_size, device=device_named("cpu")),
        "precision": precision,
        "warmup_steps": 0,
        "measured_steps": STEPS,
        "log_dir": None,
        "trial_timeout_seconds": 120,
        **changes,
    }
    spec = TrialSpec(**values)
    *steps, ended = DeepSpeedLlm(device_kind="cpu").run(spec, [host])
    assert isinstance(ended, Ended) and ended.outcome is Outcome.OK, ended
    assert all(isinstance(step, StepReport) for step in steps)
    for step in steps:
        assert len({rank.loss for rank in step.ranks}) == 1, "every rank knows the same loss"
    return [step.loss for step in steps], [step.grad_norm for step in steps]


def check_fp32(layout: Layout, host: LocalHost) -> None:
    model = model_for(layout)
    losses, norms = train(layout, model, host)
    expected_losses, expected_norms = plain_training(model, STEPS)
    assert losses == pytest.approx(expected_losses, abs=TOLERANCE)
    assert norms == pytest.approx(expected_norms, rel=TOLERANCE)


def test_there_are_at_least_forty_layouts_and_the_sample_is_spread() -> None:
    assert len(set(ALL)) >= 40
    for name in ("zero_stage", "activation_checkpointing", "sequence_parallel", "rmsnorm_kernel"):
        assert {getattr(la, name) for la in SAMPLE} == {getattr(la, name) for la in ALL}, name
    assert {layout.pipeline_parallel for layout in SAMPLE} >= {1, 2, 3}
    assert {layout.tensor_parallel for layout in SAMPLE} >= {1, 2, 4}


@pytest.mark.parametrize("layout", SAMPLE, ids=Layout.describe)
def test_fp32_layouts_equal_one_process(layout: Layout, host: LocalHost) -> None:
    check_fp32(layout, host)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [la for la in ALL if la not in SAMPLE], ids=Layout.describe)
def test_every_other_fp32_layout_equals_one_process(layout: Layout, host: LocalHost) -> None:
    check_fp32(layout, host)


@pytest.mark.parametrize(
    "sizes",
    [
        {"data_parallel": 2, "zero_stage": 1},
        {"data_parallel": 2, "zero_stage": 2, "activation_checkpointing": "full"},
        {"data_parallel": 2, "zero_stage": 3},
        {"tensor_parallel": 2, "sequence_parallel": True, "data_parallel": 2},
        {"pipeline_parallel": 2, "tensor_parallel": 2},
    ],
    ids=str,
)
def test_bf16_layouts_are_near_one_process_in_fp32(sizes: dict[str, Any], host: LocalHost) -> None:
    layout = layout_from_mapping(sizes, GROUPED_QUERY)
    losses, norms = train(layout, GROUPED_QUERY, host, precision="bf16")
    expected_losses, expected_norms = plain_training(GROUPED_QUERY, STEPS)
    assert losses == pytest.approx(expected_losses, abs=BF16_TOLERANCE)
    assert norms == pytest.approx(expected_norms, rel=BF16_TOLERANCE)


@pytest.mark.parametrize(
    ("sizes", "precision"),
    [
        ({"data_parallel": 2, "zero_stage": 0}, "fp32"),
        ({"data_parallel": 2, "zero_stage": 1}, "fp32"),
        ({"data_parallel": 2, "zero_stage": 2}, "fp32"),
        ({"data_parallel": 2, "zero_stage": 3}, "fp32"),
        ({"data_parallel": 2, "zero_stage": 1}, "bf16"),
        ({"data_parallel": 2, "zero_stage": 3}, "bf16"),
        ({"data_parallel": 2, "tensor_parallel": 2, "sequence_parallel": True}, "fp32"),
        ({"pipeline_parallel": 2, "data_parallel": 2, "zero_stage": 0}, "fp32"),
        ({"pipeline_parallel": 2, "data_parallel": 2, "zero_stage": 1}, "fp32"),
        ({"pipeline_parallel": 2, "data_parallel": 2, "zero_stage": 1}, "bf16"),
    ],
    ids=str,
)
def test_the_number_of_micro_batches_changes_between_steps(
    sizes: dict[str, Any], precision: str, host: LocalHost
) -> None:
    """As of an engine that was built with each number, which `check_fp32` compares likewise."""
    counts, steps_each = (3, 2, 1), 3
    layout = layout_from_mapping({**sizes, "micro_batch_size": 1}, GROUPED_QUERY)
    assert layout.gradient_accumulation_steps not in counts
    losses, norms = train(
        layout, GROUPED_QUERY, host, precision, micro_batch_counts=counts, measured_steps=steps_each
    )
    batch_sizes = tuple(2 * count for count in counts for _ in range(steps_each))
    expected_losses, expected_norms = plain_training(GROUPED_QUERY, len(batch_sizes), batch_sizes)
    tolerance = TOLERANCE if precision == "fp32" else BF16_TOLERANCE
    assert losses == pytest.approx(expected_losses, abs=tolerance)
    assert norms == pytest.approx(expected_norms, rel=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{}, {"tensor_parallel": 2, "sequence_parallel": True}], ids=str)
def test_compiled_blocks_give_the_same_numbers(sizes: dict[str, Any], host: LocalHost) -> None:
    check_fp32(layout_from_mapping({**sizes, "torch_compile": True}, GROUPED_QUERY), host)


def test_the_loss_falls_on_real_text() -> None:
    losses, _ = plain_training(GROUPED_QUERY, STEPS)
    assert losses[-1] < losses[0] - 0.05
