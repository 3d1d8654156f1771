"""Qwen 2 and 2.5: biases of queries, keys and values."""

from typing import Any

from autotune.models.architecture import Architecture, Config
from autotune.models.common import no_sliding_window, rope, shape


def _read(config: Config) -> dict[str, Any]:
    no_sliding_window(config)
    config.ignore("use_mrope")
    return {**shape(config), **rope(config), "qkv_bias": True}


ARCHITECTURE = Architecture(
    name="qwen2", model_types=("qwen2",), classes=("Qwen2ForCausalLM",), read=_read
)
