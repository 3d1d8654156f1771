"""Tensor-parallel regions: what a block keeps, and which collectives run beside which products."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.cluster import Cluster
from autotune.cost.memory import block_activation_bytes
from autotune.cost.model import CostModel
from autotune.hardware import device_named
from autotune.layout import layout_from_mapping
from autotune.model import Model

ROOT = Path(__file__).resolve().parent.parent.parent
LLAMA_8B: dict[str, Any] = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "sequence_length": 4096,
    "global_batch_size": 64,
}
LLAMA_13B = {
    **LLAMA_8B,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
QWEN2 = {**LLAMA_8B, "qkv_bias": True}
QWEN3 = {**LLAMA_8B, "qk_norm": "heads"}
NEOX = {
    **LLAMA_13B,
    "gated_feed_forward": False,
    "activation": "gelu",
    "norm": "layernorm",
    "qkv_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "rotary_fraction": 0.25,
}
# No other tensor of a rank's block is as large as a gathered input.
SMALL = {**LLAMA_8B, "hidden_size": 512, "intermediate_size": 1024, "sequence_length": 64}
SHARDED = {"tensor_parallel": 8, "sequence_parallel": True, "micro_batch_size": 2}
WHOLE = {"tensor_parallel": 8, "micro_batch_size": 2}
ONE = {"micro_batch_size": 2}
CASES: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    (SHARDED, LLAMA_8B, True),
    (SHARDED, LLAMA_13B, True),
    (SHARDED, QWEN2, True),
    (SHARDED, QWEN3, True),
    (SHARDED, NEOX, True),
    (WHOLE, LLAMA_8B, True),
    (WHOLE, QWEN2, True),
    (ONE, LLAMA_8B, True),
    (SHARDED, LLAMA_8B, False),
    (WHOLE, LLAMA_8B, False),
    ({**SHARDED, "activation_checkpointing": "full"}, LLAMA_8B, True),
    ({**SHARDED, "torch_compile": True}, SMALL, True),
    ({**SHARDED, "zero_stage": 3}, QWEN3, True),
]
ADDED_BESIDE = {
    "reduce_scatter_tensor": (
        "start all_gather_into_tensor",
        "product",  # the gradient of the input
        "start reduce_scatter_tensor",
        "wait all_gather_into_tensor",
        "product",  # the gradient of the weight
        "wait reduce_scatter_tensor",
    ),
    "all_reduce": ("product", "start all_reduce", "product", "wait all_reduce"),
}
"""What the backward pass does at the beginning of a region, by how the ranks' sums are added up."""


@functools.cache
def all_counted() -> list[dict[str, Any]]:
    """What was counted of CASES: one process imports torch for all."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainables.counted_block", json.dumps(CASES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"kept')]


def counted(layout: dict[str, Any], model: dict[str, Any], trained: bool = True) -> dict[str, Any]:
    return all_counted()[CASES.index((layout, model, trained))]


def predicted_bytes(of_layout: dict[str, Any], of_model: dict[str, Any]) -> float:
    """Korthikanti et al. 2022 (arXiv 2205.05198), section 4.2, as the cost model has it."""
    model = Model(**of_model)
    cluster = Cluster(nodes=1, gpus_per_node=8, device=device_named("h200"))
    cost = CostModel(model, "bf16", cluster)
    columns = cost.prepare([layout_from_mapping(of_layout, model)]).columns
    kept, scores = block_activation_bytes(columns, cost.setting, cost.constants)
    return float(kept[0] + scores[0])


@pytest.mark.parametrize("case", range(8))
def test_a_block_keeps_what_megatrons_formula_says(case: int) -> None:
    layout, model, _ = CASES[case]
    assert sum(counted(layout, model)["kept"]) == pytest.approx(
        predicted_bytes(layout, model), rel=0.03
    )


def test_the_formula_keeps_the_shards_of_inputs_only() -> None:
    tokens, hidden = 2 * 4096, 4096
    sharded, whole = (predicted_bytes(layout, LLAMA_8B) for layout in (SHARDED, WHOLE))
    # Two inputs of norms and two of regions, in bf16.
    assert whole - sharded == pytest.approx(tokens * hidden * 4 * 2 * (1 - 1 / 8))


@pytest.mark.parametrize(
    "model", [LLAMA_8B, QWEN2, QWEN3, NEOX], ids=["8b", "qwen2", "qwen3", "neox"]
)
def test_collectives_run_beside_products(model: dict[str, Any]) -> None:
    expected = ADDED_BESIDE["reduce_scatter_tensor"]
    found = counted(SHARDED, model)
    assert regions(found, expected) == 2
    # Gradients of norms and biases are added up once per step; with ZeRO 3 in every pass.
    assert "all_reduce" not in found["backward"]["order"]


def regions(found: dict[str, Any], expected: tuple[str, ...]) -> int:
    """How often the backward pass does exactly this; nothing else of it is asynchronous."""
    order = found["backward"]["order"]
    begins = [i for i in range(len(order)) if tuple(order[i : i + len(expected)]) == expected]
    started = [step for step in order if step.startswith("start")]
    assert len(started) == len(begins) * sum(step.startswith("start") for step in expected)
    assert not any(step.startswith("start") for step in found["forward"]["order"])
    return len(begins)


def test_with_zero_3_gradients_of_norms_are_added_up_in_every_pass() -> None:
    found = counted({**SHARDED, "zero_stage": 3}, QWEN3)
    assert found["backward"]["order"].count("all_reduce") == 4
    assert regions(found, ADDED_BESIDE["reduce_scatter_tensor"]) == 2


@pytest.mark.parametrize("model", [LLAMA_8B, QWEN2])
def test_without_sequence_parallelism_the_sum_runs_beside_a_product(model: dict[str, Any]) -> None:
    assert regions(counted(WHOLE, model), ADDED_BESIDE["all_reduce"]) == 2


def test_weights_that_are_not_trained_need_no_inputs() -> None:
    found = counted(SHARDED, LLAMA_8B, trained=False)
    assert "start all_gather_into_tensor" not in found["backward"]["order"]
    assert found["backward"]["order"].count("start reduce_scatter_tensor") == 2
    inputs = 2 * 2 * 4096 * 4096 * 2 / 8
    kept = sum(counted(SHARDED, LLAMA_8B)["kept"]) - sum(found["kept"])
    assert kept >= inputs
    assert counted(WHOLE, LLAMA_8B, trained=False)["backward"]["order"].count("product") < 8


def test_a_recomputed_block_keeps_its_input_only() -> None:
    full = {**SHARDED, "activation_checkpointing": "full"}
    found = counted(full, LLAMA_8B)
    assert sum(found["kept"]) == 2 * 4096 * 4096 * 2 / 8
    assert regions(found, ADDED_BESIDE["reduce_scatter_tensor"]) == 2


def test_queries_keys_and_values_are_one_product_and_so_are_gate_and_up() -> None:
    for layout in (SHARDED, WHOLE, ONE):
        found = counted(layout, LLAMA_8B)
        assert [found[name]["order"].count("product") for name in ("forward", "backward")] == [4, 8]
        assert found["forward"]["operations"] <= 17
        assert found["backward"]["operations"] <= 21


def test_a_compiled_block_is_one_graph_and_gathers_its_inputs_again() -> None:
    found = counted({**SHARDED, "torch_compile": True}, SMALL)
    gathered = 2 * SMALL["sequence_length"] * SMALL["hidden_size"] * 2
    assert gathered not in found["kept"]
    assert found["kept"].count(gathered // 8) >= 2
