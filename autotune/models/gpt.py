"""GPT-2 and GPT-NeoX: LayerNorm, GELU without a gate, biases everywhere."""

from typing import Any

from autotune.models.architecture import Architecture, Config
from autotune.models.common import ACTIVATIONS

_WITH_BIASES = {
    "norm": "layernorm",
    "gated_feed_forward": False,
    "attention_output_bias": True,
    "mlp_bias": True,
}


def _gpt2(config: Config) -> dict[str, Any]:
    config.require("scale_attn_weights", True)
    config.require("scale_attn_by_inverse_layer_idx", False)
    config.ignore("reorder_and_upcast_attn")
    hidden, heads = config.take("n_embd"), config.take("n_head")
    inner = config.take("n_inner", None)
    return {
        **_WITH_BIASES,
        "qkv_bias": True,
        "num_hidden_layers": config.take("n_layer"),
        "hidden_size": hidden,
        "intermediate_size": inner or (4 * hidden if isinstance(hidden, int) else hidden),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": config.take("vocab_size"),
        "positions": "learned",
        "max_position_embeddings": config.take("n_positions"),
        "rms_norm_eps": config.number("layer_norm_epsilon", 1e-5),
        "activation": config.choice("activation_function", ACTIVATIONS, "gelu_new"),
        "tie_word_embeddings": config.flag("tie_word_embeddings", True),
    }


def _gpt_neox(config: Config) -> dict[str, Any]:
    heads, bias = config.take("num_attention_heads"), config.flag("attention_bias", True)
    rope = config.take("rope_parameters", {})
    config.require("rope_scaling")
    config.ignore("max_position_embeddings")
    theta = config.number("rotary_emb_base", config.number("rope_theta", 10_000.0))
    fraction = config.number("rotary_pct", config.number("partial_rotary_factor", 0.25))
    return {
        **_WITH_BIASES,
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "num_hidden_layers": config.take("num_hidden_layers"),
        "hidden_size": config.take("hidden_size"),
        "intermediate_size": config.take("intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": config.take("vocab_size"),
        "rope_theta": float(rope.get("rope_theta", theta)),
        "rotary_fraction": float(rope.get("partial_rotary_factor", fraction)),
        "rms_norm_eps": config.number("layer_norm_eps", 1e-5),
        "activation": config.choice("hidden_act", ACTIVATIONS, "gelu"),
        "parallel_residual": config.flag("use_parallel_residual", True),
        "tie_word_embeddings": config.flag("tie_word_embeddings", False),
    }


ARCHITECTURES = (
    Architecture(name="gpt2", model_types=("gpt2",), classes=("GPT2LMHeadModel",), read=_gpt2),
    Architecture(
        name="gpt_neox",
        model_types=("gpt_neox",),
        classes=("GPTNeoXForCausalLM",),
        read=_gpt_neox,
    ),
)
