"""DeepSeek-V2 and V3: latent attention, shared experts, first blocks without experts."""

from typing import Any

from autotune.errors import InputError
from autotune.inputs import shown
from autotune.models.architecture import Architecture, Config
from autotune.models.common import rope, shape


def _v2(config: Config) -> dict[str, Any]:
    config.require("scoring_func", "softmax")
    return _read(config, scoring="softmax", normalised=config.flag("norm_topk_prob", False))


def _v3(config: Config) -> dict[str, Any]:
    config.require("scoring_func", "sigmoid")
    return _read(config, scoring="sigmoid", normalised=config.flag("norm_topk_prob", True))


def _read(config: Config, *, scoring: str, normalised: bool) -> dict[str, Any]:
    # How tokens are sent to experts changes neither shapes nor, on average, arithmetic.
    config.ignore("topk_method", "topk_group", "rope_interleave")
    groups, factor = config.number("n_group", 1), config.number("routed_scaling_factor", 1.0)
    if groups != 1 or factor != 1:
        config.notes.append(
            "tokens are sent to the best experts of all groups, and the experts' outputs are not "
            "scaled (n_group, routed_scaling_factor): this changes no step time and no memory"
        )
    config.ignore("aux_loss_alpha", "seq_aux", "ep_size", "output_router_logits")
    config.ignore("router_aux_loss_coef")
    config.require("moe_layer_freq", 1)
    bias = config.flag("attention_bias", False)
    if config.take("num_nextn_predict_layers", 0):
        config.notes.append("the block that predicts a further token is not planned or trained")
    if quantised := config.take("quantization_config", None):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        if method != "fp8":
            raise InputError(f"quantization_config must be of fp8 weights, got {shown(method)}")
        config.notes.append("the weights are published in fp8; they are trained in bf16")
    width = config.take("moe_intermediate_size")
    shared = config.take("n_shared_experts", 0)
    config.ignore("head_dim", "qk_head_dim")
    latent = {
        "query_rank": config.take("q_lora_rank", None),
        "key_value_rank": config.take("kv_lora_rank"),
        "plain_head_size": config.take("qk_nope_head_dim"),
        "rotated_head_size": config.take("qk_rope_head_dim"),
        "value_head_size": config.take("v_head_dim"),
    }
    return {
        **shape(config, grouped=False),
        **rope(config),
        "qkv_bias": False,
        "attention_output_bias": bias,
        "latent_attention": latent,
        "experts": {
            "count": config.take("n_routed_experts"),
            "per_token": config.take("num_experts_per_tok"),
            "intermediate_size": width,
            "shared_intermediate_size": shared * width if isinstance(width, int) else 0,
            "dense_layers": config.take("first_k_dense_replace", 0),
            "scoring": scoring,
            "normalised": normalised,
        },
    }


ARCHITECTURES = (
    Architecture(
        name="deepseek_v2",
        model_types=("deepseek_v2",),
        classes=("DeepseekV2ForCausalLM",),
        read=_v2,
    ),
    Architecture(
        name="deepseek_v3",
        model_types=("deepseek_v3",),
        classes=("DeepseekV3ForCausalLM",),
        read=_v3,
    ),
)
