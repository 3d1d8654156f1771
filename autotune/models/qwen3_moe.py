"""Qwen 3 with a mixture of experts: 30B-A3B, 235B-A22B."""

from typing import Any

from autotune.models.architecture import Architecture, Config
from autotune.models.common import no_sliding_window, rope, shape


def _read(config: Config) -> dict[str, Any]:
    no_sliding_window(config)
    config.require("decoder_sparse_step", 1)
    config.require("mlp_only_layers", [])
    config.ignore("output_router_logits", "router_aux_loss_coef")
    bias = config.flag("attention_bias", False)
    fields = shape(config)
    return {
        **fields,
        "head_dim": fields["head_dim"] or 128,
        **rope(config),
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "qk_norm": "heads",
        "experts": {
            "count": config.take("num_experts", 128),
            "per_token": config.take("num_experts_per_tok", 8),
            "intermediate_size": config.take("moe_intermediate_size"),
            "normalised": config.flag("norm_topk_prob", False),
        },
    }


ARCHITECTURE = Architecture(
    name="qwen3_moe", model_types=("qwen3_moe",), classes=("Qwen3MoeForCausalLM",), read=_read
)
