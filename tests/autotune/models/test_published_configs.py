"""28 published configs: parameters and FLOPs are those of Hugging Face's models."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from autotune.model import Model
from autotune.models import architectures, model_from_mapping

CONFIGS = {path.stem: path for path in sorted(Path(__file__).with_name("configs").glob("*.json"))}
BATCH = {"sequence_length": 1024, "global_batch_size": 8}
# As their cards on the Hugging Face Hub count them.
PUBLISHED = {
    "deepseek-v2-lite": 15_706_484_224,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "gpt-neox-20b": 20_554_567_680,
    "gpt2": 124_439_808,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b-v0.1": 7_241_732_096,
    "mixtral-8x22b": 140_620_634_112,
    "mixtral-8x7b": 46_702_792_704,
    "phi-3-mini-4k": 3_821_079_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-8b": 8_190_735_360,
}
# Billions of parameters that a token passes, embeddings included.
ACTIVE = {
    "deepseek-v3": 37.5,
    "mixtral-8x7b": 12.9,
    "qwen3-235b-a22b": 22.2,
    "qwen3-30b-a3b": 3.35,
}
logging.set_verbosity_error()


def config_of(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(CONFIGS[name].read_text(encoding="utf-8"))
    return content


def model_of(config: dict[str, Any]) -> Model:
    return model_from_mapping({**config, **BATCH})


def hugging_face(config: dict[str, Any], device: str = "meta") -> Any:
    unknown = ("architectures", "quantization_config", "torch_dtype")
    known = {key: value for key, value in config.items() if key not in unknown}
    with torch.device(device), warnings.catch_warnings(action="ignore"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**known),
            attn_implementation="eager",
            experts_implementation="eager",
        )


def test_every_architecture_has_a_published_config() -> None:
    assert len(CONFIGS) >= 20
    assert {model_of(config_of(name)).architecture for name in CONFIGS} == set(architectures())


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_hugging_faces(name: str) -> None:
    model = model_of(config_of(name))
    theirs = sum(parameter.numel() for parameter in hugging_face(config_of(name)).parameters())
    assert model.parameters == theirs
    if name in PUBLISHED:
        assert model.parameters == PUBLISHED[name]
    if name in ACTIVE:
        assert model.active_parameters / 1e9 == pytest.approx(ACTIVE[name], rel=0.01)
    else:
        assert (model.active_parameters == model.parameters) == (model.experts is None)


def scaled_down(config: dict[str, Any]) -> dict[str, Any]:
    """The config with few layers, and few small experts, so that it runs on a CPU."""
    small = {**config, "num_hidden_layers": 2, "n_layer": 2, "first_k_dense_replace": 1}
    small |= {"num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "n_group": 1}
    small |= {"topk_group": 1, "num_experts_per_tok": 2, "max_window_layers": 2}
    small = {key: value for key, value in small.items() if key in config}
    if any("experts" in key for key in config):
        # These get real weights.
        wide = {"intermediate_size": 1024, "moe_intermediate_size": 512, "vocab_size": 1024}
        small |= {key: value for key, value in wide.items() if key in config}
    return small


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_flops_are_those_that_torch_counts(name: str) -> None:
    config = scaled_down(config_of(name))
    # Eager attention computes all scores, also those outside a window.
    model = model_of({**config, **({"sliding_window": None} if "sliding_window" in config else {})})
    has_experts = model.experts is not None
    # Experts choose tokens by value, so they need real ones.
    theirs = hugging_face(config, "cpu" if has_experts else "meta").eval()
    length = 64
    tokens = torch.zeros((1, length), dtype=torch.long, device=theirs.device)
    if has_experts:
        tokens = torch.arange(length)[None]
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        theirs(tokens)
    products = model.forward_product_flops_per_token + 2 * model.vocab_size * model.hidden_size
    sizes = model.query_size + model.attended_size
    scores = 2 * model.num_hidden_layers * sizes * length
    assert counted.get_total_flops() / length == pytest.approx(products + scores, rel=0.01)
