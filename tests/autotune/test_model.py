"""Shapes, counts and bad input of models."""

import dataclasses

import pytest

from autotune.errors import InputError
from autotune.inputs import read_json
from autotune.model import Model
from autotune.models import model_from_mapping

LLAMA_13B = Model(
    num_hidden_layers=40,
    hidden_size=5120,
    intermediate_size=13824,
    num_attention_heads=40,
    num_key_value_heads=40,
    vocab_size=32000,
    sequence_length=2048,
    global_batch_size=2048,
)


def test_parameters_of_llama_13b_are_the_published_ones() -> None:
    # Touvron et al. 2023 give 13.0 billion; Hugging Face's checkpoint counts 13,015,864,320.
    assert LLAMA_13B.parameters == 13_015_864_320


def test_model_flops_are_the_papers() -> None:
    expected = 6 * 13_015_864_320 + 12 * 40 * 5120 * 2048
    assert LLAMA_13B.model_flops_per_token == expected


def test_hardware_flops_rise_with_recomputation_and_stay_below_twice_the_models() -> None:
    none, selective, full = (
        LLAMA_13B.hardware_flops_per_token(c) for c in ("none", "selective", "full")
    )
    assert none < selective < full
    # A full recomputation is one more forward pass of the blocks: at most 4/3.
    assert full / none == pytest.approx(4 / 3, rel=0.02)
    assert none < LLAMA_13B.model_flops_per_token


def test_tied_embeddings_and_a_missing_gate_have_fewer_parameters() -> None:
    whole = LLAMA_13B.parameters
    matrix = LLAMA_13B.vocab_size * LLAMA_13B.hidden_size
    gates = 40 * LLAMA_13B.hidden_size * LLAMA_13B.intermediate_size
    tied = dataclasses.replace(LLAMA_13B, tie_word_embeddings=True)
    ungated = dataclasses.replace(LLAMA_13B, gated_feed_forward=False)
    assert (whole - tied.parameters, whole - ungated.parameters) == (matrix, gates)
    # The output matrix still multiplies; the look-up never did.
    assert tied.hardware_flops_per_token("none") == LLAMA_13B.hardware_flops_per_token("none")
    assert ungated.hardware_flops_per_token("full") == pytest.approx(
        LLAMA_13B.hardware_flops_per_token("full") - 8 * gates
    )


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"hidden_size": 0}, "model: hidden_size must be greater than or equal to 1, got 0"),
        ({"hidden_size": "wide"}, "hidden_size must be a valid integer, got 'wide'"),
        ({"hidden_size": 5121}, "num_attention_heads must divide hidden_size, got 40 and 5121"),
        ({"num_key_value_heads": 7}, "num_key_value_heads must divide num_attention_heads"),
        ({"experts": 8}, "model: experts must be a dictionary or an instance of Experts, got 8"),
        ({"layers": 8}, "model: unknown key layers"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be a valid boolean, got 1"),
        ({"torch_dtype": "int8"}, "dtype must be float32 or bfloat16 or float16, got 'int8'"),
        ({"head_dim": 63}, "must be even for rotary embeddings, got 63"),
        ({"positions": "learned"}, "max_position_embeddings must be given with learned positions"),
        ({"vocab_size": True}, "vocab_size must be a valid integer, got True"),
    ],
)
def test_bad_models_are_one_sentence(changed: dict[str, object], sentence: str) -> None:
    values = {k: v for k, v in dataclasses.asdict(LLAMA_13B).items() if v is not None}
    with pytest.raises(InputError) as error:
        model_from_mapping({**values, **changed})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named() -> None:
    values = dataclasses.asdict(LLAMA_13B)
    del values["vocab_size"]
    with pytest.raises(InputError, match="model: vocab_size is missing"):
        model_from_mapping(values)


@pytest.mark.parametrize("text", ["{", "[1]", "no/such/file.json"])
def test_unreadable_json_is_one_sentence(text: str) -> None:
    with pytest.raises(InputError) as error:
        read_json(text, what="model")
    assert str(error.value).startswith("model: ")
