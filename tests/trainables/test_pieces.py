"""The small parts of the DeepSpeed worker."""

import dataclasses
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.layout import Layout
from autotune.model import Model
from autotune.trial.corpus import check_data, text_files
from autotune.trial.deepspeed_config import deepspeed_config
from autotune.trial.trial import Outcome
from trainables.deepspeed_llm.data import batch_slice
from trainables.deepspeed_llm.failures import classify
from trainables.deepspeed_llm.memory import CpuPeakMemory, memory_limit
from trainables.deepspeed_llm.tokens import InOrder, SyntheticTokens, TextTokens

T = TypeVar("T")


@pytest.mark.parametrize("replicas", [1, 2, 4, 8])
@pytest.mark.parametrize("synthetic", [False, True])
def test_replicas_share_one_global_batch(synthetic: bool, replicas: int) -> None:
    source = SyntheticTokens(512, 1) if synthetic else TextTokens(text_files(None))

    def rows(replica: int, replicas: int) -> torch.Tensor:
        tokens, targets = batch_slice(
            InOrder(source, 16), 3, global_batch_size=8, replica=replica, replicas=replicas
        )
        assert torch.equal(tokens[:, 1:], targets[:, :-1]), "a target is the next token"
        return tokens

    whole = rows(0, 1)
    parts = torch.cat([rows(replica, replicas) for replica in range(replicas)])
    assert torch.equal(whole, parts)
    assert whole.max() < 512


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    start=st.integers(0, 200),
    count=st.integers(1, 60),
)
def test_text_is_read_across_files_and_round_again(
    tmp_path_factory, sizes: list[int], start: int, count: int
) -> None:
    folder = tmp_path_factory.mktemp("text")
    content = np.random.default_rng(0).integers(256, size=sum(sizes)).astype(np.uint8)
    parts = np.split(content, np.cumsum(sizes)[:-1])
    for index, part in enumerate(parts):
        (folder / f"{index}.txt").write_bytes(part.tobytes())
    (folder / "empty.txt").touch()
    source = TextTokens(text_files(str(folder)))
    expected = content[np.arange(start, start + count) % len(content)]
    assert source.read(start, count).tolist() == expected.tolist()


def test_data_without_a_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one byte"):
        TextTokens(text_files(str(tmp_path)))
    for nothing in ("/no/such", ""):
        with pytest.raises(InputError, match="no such file or folder"):
            text_files(nothing)


def test_a_vocabulary_without_all_bytes_needs_synthetic_tokens(small_model: Model) -> None:
    small = dataclasses.replace(small_model, vocab_size=128)
    with pytest.raises(InputError, match="vocab_size must be at least 256 for bytes"):
        check_data(None, synthetic=False, model=small)
    check_data(None, synthetic=True, model=small)


@pytest.mark.parametrize(
    ("error", "limited", "outcome", "consequence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), False, "oom", False),
        (MemoryError(), True, "oom", False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True, "oom", False),
        (RuntimeError("can't start new thread"), True, "oom", False),
        (RuntimeError("can't start new thread"), False, "crashed", False),
        (RuntimeError("Resource temporarily unavailable"), True, "oom", False),
        (SystemError("error return without exception set"), True, "oom", False),
        (SystemError("error return without exception set"), False, "crashed", False),
        (ImportError("libm.so: failed to map segment from shared object"), True, "oom", False),
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1"), True, "crashed", True),
        (ValueError("out of memory of things to say"), True, "crashed", False),
        (AssertionError("no"), False, "crashed", False),
    ],
)
def test_failures_are_typed_from_the_exception(
    error: Exception, limited: bool, outcome: str, consequence: bool
) -> None:
    failure = classify(error, memory_limited=limited)
    assert (failure.outcome, failure.consequence) == (Outcome(outcome), consequence)
    assert failure.reason.startswith(type(error).__name__)


def test_peak_memory_sees_what_was_used_and_gave_back() -> None:
    in_use, reserved = _in_a_new_process(_peaks_of_64_mib)
    assert 0.06 < in_use < 0.09
    assert reserved > 0.06, "the peak since this process began"


def test_a_memory_limit_is_enforced_and_lifted() -> None:
    _in_a_new_process(_allocate_beyond_a_limit)


def _in_a_new_process(measure: Callable[[], T]) -> T:
    """The allocator of this process may hold pages of earlier tests: a tensor then needs none."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure)


def _peaks_of_64_mib() -> tuple[float, float]:
    memory = CpuPeakMemory()
    block = torch.ones(64 * 2**20 // 4)
    del block
    return memory.in_use(), memory.reserved()


def _allocate_beyond_a_limit() -> None:
    with (
        pytest.raises(RuntimeError, match="can't allocate memory"),
        memory_limit(0.05, torch.device("cpu")),
    ):
        torch.empty(64 * 2**20)
    torch.empty(64 * 2**20)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_configuration_sets_what_deepspeed_would_guess(stage: int, small_model: Model) -> None:
    layout = Layout(data_parallel=2, zero_stage=stage, gradient_accumulation_steps=4)
    config = deepspeed_config(layout, small_model, precision="fp32", overlap_communication=False)
    zero = config["zero_optimization"]
    assert zero["stage"] == stage
    assert zero["reduce_bucket_size"] <= small_model.parameters, "not the 2 GB of the default"
    assert config["gradient_clipping"] == 1.0
    assert config["pipeline"] == {"pipe_partitioned": False, "grad_partitioned": False}
