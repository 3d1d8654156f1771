"""Qwen 3: norms of the heads of queries and keys."""

from typing import Any

from autotune.models.architecture import Architecture, Config
from autotune.models.common import no_sliding_window, rope, shape


def _read(config: Config) -> dict[str, Any]:
    no_sliding_window(config)
    bias = config.flag("attention_bias", False)
    fields = shape(config)
    return {
        **fields,
        "head_dim": fields["head_dim"] or 128,
        **rope(config),
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "qk_norm": "heads",
    }


ARCHITECTURE = Architecture(
    name="qwen3", model_types=("qwen3",), classes=("Qwen3ForCausalLM",), read=_read
)
