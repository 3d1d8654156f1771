"""Gemma 2 and 3 (text): norms around attention and feed-forward network, local and global blocks,
GeGLU, scaled embeddings; Gemma 2 caps scores and logits, Gemma 3 norms queries and keys."""

import math
from collections.abc import Sequence
from typing import Any

from autotune.errors import InputError
from autotune.inputs import shown
from autotune.models.architecture import Architecture, Config
from autotune.models.common import ACTIVATIONS, rope, shape


def _gemma2(config: Config) -> dict[str, Any]:
    config.ignore("layer_types")
    return {
        **_common(config),
        **rope(config),
        "sliding_window": config.take("sliding_window", 4096),
        "global_every": 2,
        "attention_softcap": _cap(config, "attn_logit_softcapping", 50.0),
        "logit_softcap": _cap(config, "final_logit_softcapping", 30.0),
    }


def _gemma3(config: Config) -> dict[str, Any]:
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        config.require(cap)
    config.require("use_bidirectional_attention", False)
    return {
        **_common(config),
        "global_every": _global_every(config),
        **_two_ropes(config),
        "sliding_window": config.take("sliding_window", 4096),
        "qk_norm": "heads",
    }


def _common(config: Config) -> dict[str, Any]:
    activation = config.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")
    config.ignore("hidden_act")
    fields = shape(config)
    hidden, scale = fields["hidden_size"], config.number("query_pre_attn_scalar", 256)
    bias = config.flag("attention_bias", False)
    return {
        **fields,
        "head_dim": fields["head_dim"] or 256,
        "activation": activation,
        # Gemma ties them, and its configs do not say so.
        "tie_word_embeddings": True,
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "norm_placement": "around",
        "norm_offset": True,
        "attention_scale": float(scale) ** -0.5,
        "embedding_scale": math.sqrt(hidden) if isinstance(hidden, int) and hidden > 0 else None,
    }


def _two_ropes(config: Config) -> dict[str, Any]:
    """Global blocks have one base, local ones another; configs of two ages say it differently."""
    parameters = config.take("rope_parameters", None)
    if parameters is None:
        local = config.number("rope_local_base_freq", 10_000.0)
        return {**rope(config, 1e6), "local_rope_theta": float(local)}
    try:
        whole, part = parameters["full_attention"], parameters["sliding_attention"]
        theta, local = float(whole["rope_theta"]), float(part["rope_theta"])
    except (TypeError, KeyError, ValueError):
        raise InputError(
            "rope_parameters must have rope_theta of full_attention and of sliding_attention, got "
            f"{shown(parameters)}"
        ) from None
    config.ignore("rope_theta", "rope_local_base_freq", "rope_scaling", "max_position_embeddings")
    return {"rope_theta": theta, "local_rope_theta": local}


def _global_every(config: Config) -> int:
    given = config.number("sliding_window_pattern", config.number("_sliding_window_pattern", 6))
    kinds = config.take("layer_types", None)
    if isinstance(kinds, Sequence) and "full_attention" in kinds:
        return kinds.index("full_attention") + 1
    return int(given)


def _cap(config: Config, key: str, default: float) -> float:
    return float(config.number(key, default))


ARCHITECTURES = (
    Architecture(
        name="gemma2", model_types=("gemma2",), classes=("Gemma2ForCausalLM",), read=_gemma2
    ),
    Architecture(
        name="gemma3", model_types=("gemma3_text",), classes=("Gemma3ForCausalLM",), read=_gemma3
    ),
)
