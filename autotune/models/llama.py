"""Llama 2, 3, 3.1, 3.2 (text) and 3.3."""

from typing import Any

from autotune.models.architecture import Architecture, Config
from autotune.models.common import rope, shape


def _read(config: Config) -> dict[str, Any]:
    bias = config.flag("attention_bias", False)
    return {
        **shape(config, grouped=False),
        **rope(config),
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": config.flag("mlp_bias", False),
    }


ARCHITECTURE = Architecture(
    name="llama", model_types=("llama",), classes=("LlamaForCausalLM",), read=_read
)
