"""What several test modules share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.model import Model
from autotune.space import SearchSpace
from trainables.deepspeed_llm.host import LocalHost

REPOSITORY = Path(__file__).resolve().parent.parent

# `make test` tries the same few examples every time, so that it only fails for what was changed.
# HYPOTHESIS_PROFILE=random, of `make test-all`, has ten times as many, and others every time;
# HYPOTHESIS_PROFILE=quick, of `make test-fast`, a fifth of the few.
_FEW = 50
_fixed = settings(max_examples=_FEW, derandomize=True, database=None, deadline=None)
settings.register_profile("fixed", _fixed)
settings.register_profile("quick", _fixed, max_examples=_FEW // 5)
settings.register_profile("random", max_examples=10 * _FEW, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def scaled(few: int) -> int:
    """So many cases in the fixed profile, and in proportion in the others."""
    return few * settings.default.max_examples // _FEW


def examples(few: int, **changes: Any) -> settings:
    """So many examples in the fixed profile, and in proportion in the others."""
    return settings(max_examples=scaled(few), **changes)


@pytest.fixture(scope="session")
def host() -> Iterator[LocalHost]:
    """One preloaded host process for all tests: starting it takes seconds."""
    with LocalHost(device_kind="cpu") as local:
        yield local


@pytest.fixture
def small_model() -> Model:
    """A Llama with grouped-query attention that trains in milliseconds."""
    return Model(
        num_hidden_layers=8,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=512,
        sequence_length=16,
        global_batch_size=8,
    )


@pytest.fixture
def small_space(small_model: Model) -> SearchSpace:
    """A CPU space over one virtual node of two devices."""
    return SearchSpace(
        name="small",
        model=small_model,
        cluster=Cluster(nodes=1, gpus_per_node=2, device=device_named("cpu")),
        tensor_parallel=(1, 2),
        pipeline_parallel=(1, 2),
        zero_stage=(0, 1, 2, 3),
        micro_batch_size=(1, 2, 4, 8),
        warmup_steps=1,
        measured_steps=3,
    )


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder whose path must be quoted, looks like markup, and has letters of many scripts."""
    odd = tmp_path / "-- mein [" / "x] 'é' \"$(touch made)\" :smile: 实验"
    odd.mkdir(parents=True)
    return odd
