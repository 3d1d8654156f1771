"""Host synchronisations, peak memory and traffic of a step, counted by its operations on CPUs."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.cluster import Cluster
from autotune.cost.model import CostModel
from autotune.cost.trainers import assumed_constants
from autotune.hardware import device_named
from autotune.layout import layout_from_mapping
from autotune.model import Model
from autotune.trial.deepspeed_config import SMALLEST_BUCKET

ROOT = Path(__file__).resolve().parent.parent.parent
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "sequence_length": 256,
    "global_batch_size": 4,
}
LONG = {"num_hidden_layers": 8, "vocab_size": 512, "sequence_length": 512}
NEOX = {
    "gated_feed_forward": False,
    "activation": "gelu",
    "norm": "layernorm",
    "parallel_residual": True,
    "qkv_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "rotary_fraction": 0.25,
}
MIXTURE = {"experts": {"count": 4, "per_token": 2, "intermediate_size": 352}}
SHORT = {"num_hidden_layers": 8, "vocab_size": 512, "sequence_length": 16}
# On CPUs the logits are converted to fp32 in a separate tensor: 4 bytes per logit more. The audit
# has the smallest buckets.
ON_CPUS = {
    "context_gib": 0.0,
    "fragmentation": 0.0,
    "logit_bytes": 10,
    "message_parameters": SMALLEST_BUCKET,
}


PEAKS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"micro_batch_size": 4}, {}),
    ({"micro_batch_size": 2}, {}),
    ({"micro_batch_size": 4, "activation_checkpointing": "full"}, {}),
    ({"micro_batch_size": 4, "activation_checkpointing": "selective"}, {}),
    ({"micro_batch_size": 4, "rmsnorm_kernel": "plain"}, {}),
    ({"micro_batch_size": 4}, LONG),
    ({"micro_batch_size": 1}, LONG),
    ({"micro_batch_size": 1}, SHORT),
    ({"micro_batch_size": 2}, {"num_key_value_heads": 2, "vocab_size": 8192}),
    # Other kinds of blocks: Qwen3's, Gemma's, GPT-NeoX's, OLMo 2's and Mixtral's.
    ({"micro_batch_size": 4}, {**LONG, "qk_norm": "heads", "tie_word_embeddings": True}),
    ({"micro_batch_size": 4}, {**LONG, "norm_placement": "around", "activation": "gelu_tanh"}),
    ({"micro_batch_size": 4}, {**LONG, **NEOX}),
    ({"micro_batch_size": 4}, {**LONG, "norm_placement": "after", "qk_norm": "projection"}),
    ({"micro_batch_size": 4}, {**LONG, **MIXTURE}),
]
WAITS: list[dict[str, Any]] = [
    {"micro_batch_size": 2, "activation_checkpointing": checkpointing}
    for checkpointing in ("none", "full")
]


@functools.cache
def audits() -> list[dict[str, Any]]:
    """What the audits of PEAKS and then of WAITS found: one process imports torch for all."""
    cases = [[layout, {**SHAPE, **change}] for layout, change in PEAKS]
    cases += [[layout, SHAPE] for layout in WAITS]
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainables.audited_step", json.dumps(cases)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"waits"')]


@pytest.mark.parametrize("case", range(len(WAITS)), ids=lambda case: str(WAITS[case]))
def test_the_host_never_waits_within_a_step(case: int) -> None:
    assert audits()[len(PEAKS) + case]["waits"] == []


@pytest.mark.parametrize("case", range(len(PEAKS)), ids=lambda case: str(PEAKS[case]))
def test_the_peak_is_predicted_from_what_is_kept(case: int) -> None:
    layout, change = PEAKS[case]
    shape = {**SHAPE, **change}
    measured = audits()[case]["peak_bytes"]
    model = Model(**shape)
    one = Cluster(nodes=1, gpus_per_node=1, device=device_named("h200"))
    cost = CostModel(model, "bf16", one)
    predicted = cost.memory(
        cost.prepare([layout_from_mapping(layout, model)]), {**cost.constants, **ON_CPUS}
    )
    assert float(predicted.total[0]) * 2**30 == pytest.approx(measured, rel=0.06)


def test_the_update_moves_what_the_cost_model_counts() -> None:
    moved = audits()[0]["update_bytes_per_parameter"]
    constants = assumed_constants("deepspeed_llm")
    # The flattening of gradients, a copy of 4 bytes per parameter, happens before the update.
    assert moved == pytest.approx(constants["optimizer_traffic"] - 4, rel=0.05)
