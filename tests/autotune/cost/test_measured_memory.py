"""Measured peaks of real workers on CPUs against the estimate, engine by engine and stage by stage.

The models are large enough that the libraries' own tens of megabytes, and what is only needed to
build the model, do not decide; the machine's noise is up to ten per cent.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from autotune.cluster import Cluster
from autotune.cost.model import CostModel
from autotune.hardware import device_named
from autotune.layout import layout_from_mapping
from autotune.model import Model, Precision
from autotune.trial.trial import StepReport
from tests.trainables.specs import spec_on
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.launch import DeepSpeedLlm

GIB = 2**30
# 46 million parameters and next to no activations.
STATES = Model(
    num_hidden_layers=8,
    hidden_size=512,
    intermediate_size=1376,
    num_attention_heads=8,
    num_key_value_heads=8,
    vocab_size=20_480,
    sequence_length=16,
    global_batch_size=8,
)
# One million parameters, and activations of hundreds of megabytes.
ACTIVATIONS = Model(
    num_hidden_layers=6,
    hidden_size=128,
    intermediate_size=352,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=256,
    sequence_length=256,
    global_batch_size=32,
)


def peaks(
    host: LocalHost, model: Model, precision: Precision, **dimensions: Any
) -> tuple[float, float]:
    """(measured, predicted) GiB of the worst rank."""
    layout = layout_from_mapping(dimensions, model)
    spec = spec_on("cpu", layout, model, precision)
    events = DeepSpeedLlm(device_kind="cpu").run(spec, [host])
    steps = [event for event in events if isinstance(event, StepReport)]
    measured = steps[-1].peak_memory_gib
    assert measured is not None
    limited = Cluster(
        nodes=1, gpus_per_node=layout.world_size, device=device_named("cpu"), memory_gib=8
    )
    predicted = CostModel(model, precision, limited).estimate([layout]).peak_memory_gib[0]
    return measured, float(predicted)


def sharded(precision: Precision, stage: int, size: int) -> tuple[Precision, dict[str, Any]]:
    dimensions = {"zero_stage": stage, "data_parallel": size, "micro_batch_size": 4 // size}
    return precision, dimensions


def staged(precision: Precision, stage: int) -> tuple[Precision, dict[str, Any]]:
    return precision, {"pipeline_parallel": 2, "data_parallel": 2, "zero_stage": stage}


# Every engine (without ZeRO, with each stage of it, and the pipeline's) once, in the precision that
# GPUs train in where the engine has it.
EVERY_ENGINE = [
    sharded("fp32", 0, 2),
    sharded("bf16", 1, 2),
    sharded("bf16", 2, 2),
    sharded("bf16", 3, 2),
    staged("fp32", 1),
]
OTHERS = [
    *(sharded("fp32", stage, size) for stage, size in ((1, 2), (2, 2), (3, 2), (1, 4))),
    sharded("bf16", 1, 4),
    staged("fp32", 0),
    staged("bf16", 1),
]
ENGINES = EVERY_ENGINE + [pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS]


@pytest.fixture(scope="module")
def unfragmented() -> Iterator[LocalHost]:
    """A host whose ranks map large blocks on their own: glibc's heap keeps what was freed between
    others, in bf16 and with two replicas 0.2 GiB of gradients and copies."""
    host = LocalHost(device_kind="cpu", env={"MALLOC_MMAP_THRESHOLD_": str(2**20)})
    yield host
    host.close()


@pytest.mark.parametrize(("precision", "dimensions"), ENGINES, ids=str)
def test_states_of_every_engine_and_stage(
    host: LocalHost, unfragmented: LocalHost, precision: Precision, dimensions: dict[str, Any]
) -> None:
    fragmented = precision == "bf16" and dimensions["data_parallel"] == 2
    ranks = unfragmented if fragmented else host
    measured, predicted = peaks(ranks, STATES, precision, **dimensions)
    assert predicted == pytest.approx(measured, rel=0.2)


@pytest.mark.slow  # that they are as predicted, within a fifth, is seen above
def test_stages_are_in_the_measured_order(unfragmented: LocalHost) -> None:
    measured, predicted = zip(
        *(
            peaks(unfragmented, STATES, "bf16", data_parallel=4, zero_stage=1, micro_batch_size=1)
            if size == 4
            else peaks(unfragmented, STATES, "bf16", data_parallel=size, micro_batch_size=1)
            for size in (1, 2, 4)
        ),
        strict=True,
    )
    assert list(measured) == sorted(measured, reverse=True)
    assert list(predicted) == sorted(predicted, reverse=True)


def test_activations_of_a_micro_batch_and_what_recomputation_saves(host: LocalHost) -> None:
    found = {
        (size, checkpointing): peaks(
            host,
            ACTIVATIONS,
            "fp32",
            micro_batch_size=size,
            activation_checkpointing=checkpointing,
        )
        for size, checkpointing in itertools.product((8, 32), ("none", "full"))
    }
    # The allocator's thresholds move single peaks by a third; the old mistake was a factor of four.
    for checkpointing in ("none", "full"):
        (small, small_predicted), (large, large_predicted) = (
            found[size, checkpointing] for size in (8, 32)
        )
        growth, predicted = large - small, large_predicted - small_predicted
        assert 0.6 < predicted / growth < 1.7, checkpointing
    saved, saved_predicted = (found[32, "none"][kind] - found[32, "full"][kind] for kind in (0, 1))
    assert 0.6 < saved_predicted / saved < 2.5
