"""Layouts of architectures other than Llama: losses and gradient norms are those of one process."""

import pytest

from autotune.layout import Layout, layout_from_mapping
from autotune.model import Model
from tests.trainables.reference import plain_training
from tests.trainables.small_models import small_model
from tests.trainables.test_same_numbers import STEPS, TOLERANCE, train
from trainables.deepspeed_llm.host import LocalHost

# Tied, local blocks and norms of heads; biases, partial rotation and parallel residual; learned
# positions; experts; latent attention and shared experts.
SAMPLE = ("gemma3", "gpt_neox", "gpt2", "mixtral")
OTHERS = ("qwen2", "olmo2", "gemma2 with low caps", "llama with scaling, biases, tied")
OTHERS += ("qwen3_moe", "deepseek_v2", "deepseek_v3", "phi3")
LAYOUTS = (
    {"tensor_parallel": 2},
    {"tensor_parallel": 2, "sequence_parallel": True},
    {"pipeline_parallel": 2},
    {"data_parallel": 2, "zero_stage": 3, "activation_checkpointing": "full"},
)
MORE = (
    {"data_parallel": 2, "zero_stage": 1},
    {"data_parallel": 2, "zero_stage": 2, "activation_checkpointing": "selective"},
    {"data_parallel": 2, "zero_stage": 0},
    {"pipeline_parallel": 2, "zero_stage": 0, "data_parallel": 2},
    {"pipeline_parallel": 2, "tensor_parallel": 2, "sequence_parallel": True, "data_parallel": 2},
    {"tensor_parallel": 2, "data_parallel": 2, "zero_stage": 2, "sequence_parallel": True},
)


def layout_of(sizes: dict[str, object], model: Model) -> Layout:
    kernels = {"attention_kernel": "math", "rmsnorm_kernel": "plain", "micro_batch_size": 2}
    return layout_from_mapping({**kernels, **sizes}, model)


def check(name: str, sizes: dict[str, object], host: LocalHost) -> None:
    model = small_model(name)
    losses, norms = train(layout_of(sizes, model), model, host)
    expected_losses, expected_norms = plain_training(model, STEPS)
    assert losses == pytest.approx(expected_losses, abs=TOLERANCE)
    assert norms == pytest.approx(expected_norms, rel=TOLERANCE)


@pytest.mark.parametrize("sizes", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", SAMPLE)
def test_layouts_equal_one_process(name: str, sizes: dict[str, object], host: LocalHost) -> None:
    check(name, sizes, host)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_layouts_of_others_equal_one_process(
    name: str, sizes: dict[str, object], host: LocalHost
) -> None:
    check(name, sizes, host)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MORE, ids=str)
@pytest.mark.parametrize("name", SAMPLE + OTHERS)
def test_more_layouts_equal_one_process(
    name: str, sizes: dict[str, object], host: LocalHost
) -> None:
    check(name, sizes, host)
