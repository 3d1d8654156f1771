"""Parts of configs that several architectures share."""

from collections.abc import Mapping
from typing import Any

from autotune.errors import InputError
from autotune.inputs import shown
from autotune.models.architecture import Config

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu_squared",
}
"""Hugging Face's names of activations."""


def shape(config: Config, *, grouped: bool = True, epsilon: float = 1e-6) -> dict[str, Any]:
    """Sizes by the names that most architectures have.

    `grouped`: num_key_value_heads must be given, because the default of the architecture is not the
    number of query heads. `epsilon`: the default of rms_norm_eps.
    """
    heads = config.take("num_attention_heads")
    return {
        "num_hidden_layers": config.take("num_hidden_layers"),
        "hidden_size": config.take("hidden_size"),
        "intermediate_size": config.take("intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.take("num_key_value_heads", *([] if grouped else [heads])),
        "head_dim": config.take("head_dim", None),
        "vocab_size": config.take("vocab_size"),
        "rms_norm_eps": config.number("rms_norm_eps", epsilon),
        "activation": config.choice("hidden_act", ACTIVATIONS, "silu"),
        "tie_word_embeddings": config.flag("tie_word_embeddings", False),
    }


def rope(config: Config, default_theta: float = 10_000.0) -> dict[str, Any]:
    """Rotary embedding: `rope_theta` and `rope_scaling`, or `rope_parameters` with both."""
    parameters = config.take("rope_parameters", {})
    scaling = config.take("rope_scaling", {})
    config.ignore("max_position_embeddings")
    for key, value in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if not isinstance(value, Mapping):
            raise InputError(f"{key} must be an object, got {shown(value)}")
    given = {**scaling, **parameters}
    # Taken even where they are given twice.
    theta = config.number("rope_theta", default_theta)
    theta = given.pop("rope_theta", None) or theta
    fraction = config.number("partial_rotary_factor", 1.0)
    fraction = given.pop("partial_rotary_factor", None) or fraction
    return {
        "rope_theta": float(theta),
        "rotary_fraction": float(fraction),
        "rope_scaling": _scaling(config, given),
    }


def _scaling(config: Config, given: dict[str, Any]) -> dict[str, Any] | None:
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    if kind == "default":
        return None
    if kind == "llama3":
        return given
    if kind in ("linear", "dynamic", "yarn", "longrope", "su"):
        config.notes.append(
            f"the scaling of rotary frequencies ({kind}) changes no step time and no memory; it is "
            "not applied in trials"
        )
        return None
    raise InputError(f"rope_scaling must be of type llama3, linear or yarn, got {shown(kind)}")


def no_sliding_window(config: Config) -> None:
    """Keys of a sliding window that is switched off."""
    if not config.flag("use_sliding_window", False):
        config.ignore("sliding_window", "max_window_layers", "layer_types")
