"""Traced ranks: what is counted without devices is what real ranks do, and what is predicted."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.cost.model import CostModel
from autotune.cost.per_stage import PredictedStage, predicted_stages
from autotune.errors import TracingFailed
from autotune.layout import layout_from_mapping
from autotune.model import Model
from autotune.trial.traced import TracedRank
from autotune.trial.trial import TrialSpec
from tests.trainables.small_models import CONFIGS, small_model
from tests.trainables.specs import spec_on
from trainables.deepspeed_llm.traced.launch import traced

ROOT = Path(__file__).resolve().parent.parent.parent

SMALL: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "sequence_length": 64,
    "global_batch_size": 8,
}
# Every engine and ZeRO stage, tensor and sequence parallelism, and recomputation.
REAL: list[tuple[dict[str, Any], str]] = [
    ({"tensor_parallel": 2, "pipeline_parallel": 2, "sequence_parallel": True}, "bf16"),
    ({"tensor_parallel": 2, "data_parallel": 2, "activation_checkpointing": "full"}, "bf16"),
    ({"data_parallel": 2, "zero_stage": 2}, "bf16"),
    ({"data_parallel": 2, "zero_stage": 3}, "bf16"),
    ({"data_parallel": 2, "pipeline_parallel": 2, "zero_stage": 0}, "fp32"),
]


@functools.cache
def counted() -> list[dict[str, Any]]:
    """What real ranks did and what was traced of them, for each of REAL."""
    cases = [[layout, precision, SMALL] for layout, precision in REAL]
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainables.counted_step", json.dumps(cases)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"real"')]


@pytest.mark.parametrize("case", range(len(REAL)), ids=lambda case: str(REAL[case]))
def test_a_traced_rank_does_what_a_real_one_does(case: int) -> None:
    found = counted()[case]
    for real, trace in zip(found["real"], found["traced"], strict=True):
        assert collectives(trace) == collectives(real)
        assert trace["flops"] == real["flops"]
        assert trace["peak_memory_gib"] == pytest.approx(peak_gib(real), rel=0.02)


def peak_gib(real: dict[str, Any]) -> float:
    """Without the copy that gloo's reduce-scatter makes of its input; NCCL's makes none."""
    copies = [live["gib"] for live in real["live_at_peak"] if "reduce_scatter" in live["place"]]
    return float(real["peak_memory_gib"] - sum(copies))


def collectives(rank: dict[str, Any]) -> set[tuple[Any, ...]]:
    """A GPU runs some beside its computation; all else is the same on CPUs.

    ZeRO 3 compares numbers with its peers, which a traced rank does not have.
    """
    return {
        tuple(value for key, value in one.items() if key != "beside_computation")
        for one in rank["collectives"]
        if one["dtype"] != "int64"
    }


SHAPES: dict[str, dict[str, int]] = {
    "13b": {"num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 13824},
    "30b": {"num_hidden_layers": 60, "hidden_size": 6656, "intermediate_size": 17920},
    "65b": {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 22016},
    "70b": {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672},
}
HEADS = {"13b": (40, 40), "30b": (52, 52), "65b": (64, 64), "70b": (64, 8)}
Case = tuple[str, int, dict[str, Any]]
"""Model, pipeline stage, and layout of 64 GPUs; a number of blocks replaces the model's."""


def case(model: str, tensor: int, pipeline: int = 1, stage: int = 0, **others: Any) -> Case:
    sizes = {"tensor_parallel": tensor, "pipeline_parallel": pipeline}
    data = 64 // (tensor * pipeline)
    return model, stage, {**sizes, "data_parallel": data, "zero_stage": 1, **others}


SEQUENCE = {"sequence_parallel": True}
# Few blocks, since those of one stage are alike.
IN_CI: list[Case] = [
    case("13b", 2, 4, 0),
    case("13b", 2, 8, 0),
    case("13b", 8, 4, 0, **SEQUENCE),
    case("13b", 8, 4, 3, **SEQUENCE),
    case("13b", 4, blocks=8, zero_stage=2, activation_checkpointing="full"),
    case("13b", 4, blocks=8, zero_stage=3),
    case("30b", 4, 4, 1, blocks=24, micro_batch_size=2),
    case("65b", 8, 8, 7, activation_checkpointing="full", **SEQUENCE),
    case("70b", 8, 8, 3, **SEQUENCE),
]
EVERY_STAGE = [
    case(model, tensor, pipeline, stage, **others)
    for model, tensor, pipeline, others in (
        ("13b", 2, 4, {}),
        ("13b", 1, 8, {"activation_checkpointing": "full"}),
        ("30b", 4, 4, SEQUENCE),
        ("65b", 4, 8, {"micro_batch_size": 2}),
        ("70b", 8, 4, {"activation_checkpointing": "full", **SEQUENCE}),
    )
    for stage in range(pipeline)
]
EVERY_ENGINE = [
    case(model, tensor, zero_stage=zero, activation_checkpointing=checkpointing, **others)
    for model, tensor, others in (("13b", 1, {}), ("30b", 4, SEQUENCE), ("70b", 8, SEQUENCE))
    for zero in (1, 2, 3)
    for checkpointing in ("none", "selective", "full")
]


def shape(name: str, blocks: int | None) -> Model:
    heads, groups = HEADS[name]
    return Model(
        **{**SHAPES[name], **({} if blocks is None else {"num_hidden_layers": blocks})},
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=32_000,
        sequence_length=2048,
        global_batch_size=512,
    )


def specification(of: Case) -> TrialSpec:
    name, _, values = of
    model = shape(name, values.get("blocks"))
    layout = layout_from_mapping({k: v for k, v in values.items() if k != "blocks"}, model)
    return spec_on("h100", layout, model, "bf16", nodes=8)


_traced: dict[str, TracedRank] = {}


def rank_of(of: Case, together: list[Case]) -> TracedRank:
    """The trace of a case; traces the others beside it, since torch is imported once for all."""
    if str(of) not in _traced:
        ranks = traced([(specification(one), one[1]) for one in together])
        _traced.update(zip(map(str, together), ranks, strict=True))
    return _traced[str(of)]


def prediction(of: Case) -> PredictedStage:
    spec = specification(of)
    model = CostModel(spec.model, spec.precision, spec.cluster)
    return predicted_stages(model, spec.layout, [of[1]])[0]


def check(of: Case, rank: TracedRank) -> None:
    predicted = prediction(of)
    assert predicted.peak_memory_gib == pytest.approx(rank.peak_memory_gib, rel=0.03)
    for group, moved in predicted.exchanged_bytes.items():
        # Sums of single numbers and of the weights of norms are not predicted.
        assert moved == pytest.approx(rank.exchanged_bytes(group), rel=0.02, abs=1e8), group


@pytest.mark.parametrize("of", IN_CI, ids=str)
def test_memory_and_traffic_are_predicted(of: Case) -> None:
    check(of, rank_of(of, IN_CI))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("of", EVERY_STAGE + EVERY_ENGINE, ids=str)
def test_memory_and_traffic_are_predicted_for_every_stage_and_engine(of: Case) -> None:
    check(of, rank_of(of, EVERY_STAGE if of in EVERY_STAGE else EVERY_ENGINE))


@functools.cache
def architectures() -> dict[str, tuple[TrialSpec, TracedRank]]:
    """A traced rank of every architecture, trained by two replicas."""
    specs = {name: of_architecture(small_model(name)) for name in CONFIGS}
    ranks = traced([(spec, 0) for spec in specs.values()])
    return {name: (spec, rank) for (name, spec), rank in zip(specs.items(), ranks, strict=True)}


def of_architecture(model: Model) -> TrialSpec:
    layout = layout_from_mapping({"data_parallel": 2, "attention_kernel": "math"}, model)
    return spec_on("h100", layout, model, "bf16")


@pytest.mark.parametrize("name", CONFIGS)
def test_flops_of_every_architecture_are_the_models(name: str) -> None:
    spec, rank = architectures()[name]
    model = spec.model
    head = 2 * model.vocab_size * model.hidden_size
    # Written attention calculates all scores, also those outside a window.
    scores = 2 * model.num_hidden_layers * model.sequence_length
    attention = scores * (model.query_size + model.attended_size)
    forward = model.forward_product_flops_per_token + head + attention
    tokens = model.global_batch_size * model.sequence_length / 2
    assert rank.flops == pytest.approx(3 * forward * tokens, rel=0.01)


def test_a_rank_whose_code_fails_is_told() -> None:
    spec = specification(case("13b", 8, 8))
    with pytest.raises(TracingFailed, match="No module named 'flash_attn'"):
        traced([(_with_kernel(spec, "flash_attn"), 0)])


def _with_kernel(spec: TrialSpec, kernel: Any) -> TrialSpec:
    return dataclasses.replace(
        spec, layout=dataclasses.replace(spec.layout, attention_kernel=kernel)
    )
