"""OLMo 2: norms after attention and feed-forward network, and of whole queries and keys."""

from typing import Any

from autotune.models.architecture import Architecture, Config
from autotune.models.common import rope, shape


def _read(config: Config) -> dict[str, Any]:
    bias = config.flag("attention_bias", False)
    return {
        **shape(config, grouped=False, epsilon=1e-5),
        **rope(config),
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "norm_placement": "after",
        "qk_norm": "projection",
    }


ARCHITECTURE = Architecture(
    name="olmo2", model_types=("olmo2",), classes=("Olmo2ForCausalLM",), read=_read
)
