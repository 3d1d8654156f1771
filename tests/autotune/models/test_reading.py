"""Configs are read by their architecture, or refused in one sentence; none as what it is not."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from autotune import load_model
from autotune.errors import InputError
from autotune.model import Model
from autotune.models import model_from_mapping
from tests.autotune.models.test_published_configs import (
    BATCH,
    CONFIGS,
    config_of,
    hugging_face,
    model_of,
    scaled_down,
)

LLAMA = config_of("llama-3.1-8b")


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        model_of(config)
    sentence = str(error.value)
    assert sentence.startswith("model: ") and "\n" not in sentence
    return sentence.removeprefix("model: ")


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"model_type": "llama4"},
            "model_type must be deepseek_v2, deepseek_v3, gemma2, ",
        ),
        ({"model_type": 5}, "model_type must be deepseek_v2, "),
        ({"layer_scale": 0.1}, "'layer_scale' may change the model, and is not known for llama"),
        ({"num_local_experts": 8}, "'num_local_experts' may change the model, and is not known"),
        ({"hidden_act": "xielu"}, "hidden_act must be 'silu' or "),
        ({"rope_scaling": {"rope_type": "mystery"}}, "rope_scaling must be of type llama3, linear"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object, got [1]"),
        ({"torch_dtype": "int8"}, "dtype must be float32 or bfloat16 or float16, got 'int8'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
        ({"vocab_size": -1}, "vocab_size must be greater than or equal to 1, got -1"),
        ({"head_dim": 127}, "must be even for rotary embeddings, got 127"),
    ],
)
def test_bad_configs_are_one_sentence(changed: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal({**LLAMA, **changed})


def test_the_architecture_is_never_guessed() -> None:
    # The same keys, under another name, are another model.
    olmo = config_of("olmo-2-7b")
    assert model_of(olmo).norm_placement == "after"
    assert model_of({**olmo, "model_type": "llama"}).norm_placement == "before"
    assert model_of(without(olmo, "model_type")).architecture == "olmo2"
    assert "architectures must be one of " in refusal(
        {**without(LLAMA, "model_type"), "architectures": ["LlamaForSequenceClassification"]}
    )
    # What belongs to another architecture is refused.
    for name in ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "gemma-2-2b"):
        assert "may change the model" in refusal({**config_of(name), "model_type": "llama"})


def test_a_mapping_without_architecture_has_the_fields_of_a_model() -> None:
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}
    shape |= {"num_attention_heads": 4, "vocab_size": 512, **BATCH}
    model = model_from_mapping({**shape, "gated_feed_forward": False, "activation": "gelu"})
    assert (model.architecture, model.num_key_value_heads) == ("llama", 4)
    assert not model.gated_feed_forward
    with pytest.raises(InputError, match="model: unknown key hidden_act"):
        model_from_mapping({**shape, "hidden_act": "gelu"})


def test_notes_say_what_training_here_changes() -> None:
    assert model_of(LLAMA).notes == ()
    assert model_of(LLAMA).precision == "bf16"
    half = model_of(config_of("llama-2-7b"))
    assert half.precision == "bf16"
    assert half.notes == ("the weights are published in float16; they are trained in bf16",)
    deepseek = " ".join(model_of(config_of("deepseek-v3")).notes)
    for word in ("fp8", "further token", "yarn"):
        assert word in deepseek


def test_a_folder_with_a_config_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    model = load_model(str(tmp_path), sequence_length=1024, global_batch_size=8)
    assert model == model_of(LLAMA)
    with pytest.raises(InputError, match="cannot read"):
        load_model(str(tmp_path / "none"), sequence_length=1, global_batch_size=1)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama-3.2-1b", {"tie_word_embeddings": True, "head_dim": 64}),
        ("qwen2.5-7b", {"qkv_bias": True, "attention_output_bias": False, "sliding_window": None}),
        ("qwen3-8b", {"qk_norm": "heads", "head_dim": 128}),
        ("mistral-7b-v0.1", {"sliding_window": 4096, "global_every": 0}),
        ("gemma-2-9b", {"attention_softcap": 50.0, "logit_softcap": 30.0, "global_every": 2}),
        ("gemma-3-1b", {"global_every": 6, "local_rope_theta": 10_000.0, "rope_theta": 1e6}),
        ("gpt-neox-20b", {"parallel_residual": True, "rotary_fraction": 0.25, "norm": "layernorm"}),
        ("gpt2-xl", {"positions": "learned", "activation": "gelu_tanh", "mlp_bias": True}),
        ("phi-4", {"num_key_value_heads": 10, "sliding_window": None}),
    ],
)
def test_what_distinguishes_a_model_is_read(name: str, fields: dict[str, Any]) -> None:
    model = model_of(config_of(name))
    assert {field: getattr(model, field) for field in fields} == fields


def test_blocks_with_a_window_see_less() -> None:
    long = {"sequence_length": 32_768, "global_batch_size": 8}
    mistral = model_from_mapping({**config_of("mistral-7b-v0.1"), **long})
    # 2 w - w^2 / s keys with w = 4096 and s = 32768, twice what a causal query sees on average.
    assert mistral.scores_per_token == 2 * 4096 - 4096**2 / 32_768
    gemma = model_from_mapping({**config_of("gemma-3-1b"), **long})
    assert [gemma.window_of(block) for block in (0, 4, 5, 6)] == [512, 512, None, 512]
    assert 512 * 2 < gemma.scores_per_token < 32_768


def mutated(config: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The config with one key deleted, changed, or added."""
    key = chance.choice(sorted(config))
    value = config[key]
    numbers = [0, -1, 1.5, 3, 7, 10**9, 10**12] if not isinstance(value, bool) else []
    strange: list[Any] = [*numbers, None, "", "x", [], {}, [value], True, False, "relu", "gelu"]
    match chance.randrange(4):
        case 0:
            return without(config, key)
        case 1 if isinstance(value, int) and not isinstance(value, bool):
            return {**config, key: max(1, value * chance.choice((1, 2, 4)) // 2)}
        case 2:
            return {**config, chance.choice(("layer_drop", "num_experts", "mup", "q_rank")): 2}
    return {**config, key: chance.choice(strange)}


def test_mutated_configs_are_refused_or_right() -> None:
    chance = random.Random(12)
    accepted = refused = compared = 0
    for number in range(280):
        name = sorted(CONFIGS)[number % len(CONFIGS)]
        config = mutated(scaled_down(config_of(name)), chance)
        try:
            model = model_from_mapping({**config, **BATCH})
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 900
            refused += 1
            continue
        accepted += 1
        assert isinstance(model, Model)
        theirs = {"model_type": model_type_of(model), **config}
        if not is_published_size(config):
            continue
        try:
            parameters = hugging_face(theirs).parameters()
        except Exception:  # also for keys that say nothing of the model
            continue
        compared += 1
        assert model.parameters == sum(p.numel() for p in parameters), (name, config)
    assert accepted > 60 and refused > 60 and compared > 40


def model_type_of(model: Model) -> str:
    """The `model_type` of an architecture, where a mutation took it away."""
    return {"gemma3": "gemma3_text"}.get(model.architecture, model.architecture)


def is_published_size(config: dict[str, Any]) -> bool:
    """Whether Hugging Face's model of that config is built in no time."""
    counts = [v for v in config.values() if isinstance(v, int) and not isinstance(v, bool)]
    return max(counts) < 10**7
