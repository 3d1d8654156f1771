"""Phi-3 and Phi-4 (one matrix each for queries, keys and values, and for gate and up)."""

from typing import Any

from autotune.models.architecture import Architecture, Config
from autotune.models.common import rope, shape


def _read(config: Config) -> dict[str, Any]:
    config.require("attention_bias", False)
    config.ignore("original_max_position_embeddings")
    return {
        **shape(config, grouped=False, epsilon=1e-5),
        **rope(config),
        "sliding_window": config.take("sliding_window", None),
    }


ARCHITECTURE = Architecture(
    name="phi3", model_types=("phi3",), classes=("Phi3ForCausalLM",), read=_read
)
