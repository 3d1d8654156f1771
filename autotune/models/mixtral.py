"""Mixtral 8x7B and 8x22B."""

from typing import Any

from autotune.models.architecture import Architecture, Config
from autotune.models.common import rope, shape


def _read(config: Config) -> dict[str, Any]:
    config.ignore("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")
    fields = shape(config, epsilon=1e-5)
    return {
        **fields,
        **rope(config, 1e6),
        "sliding_window": config.take("sliding_window", None),
        "experts": {
            "count": config.take("num_local_experts", 8),
            "per_token": config.take("num_experts_per_tok", 2),
            "intermediate_size": fields["intermediate_size"],
        },
    }


ARCHITECTURE = Architecture(
    name="mixtral", model_types=("mixtral",), classes=("MixtralForCausalLM",), read=_read
)
