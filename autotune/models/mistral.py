"""Mistral 7B, Nemo, Small and Large."""

from typing import Any

from autotune.models.architecture import Architecture, Config
from autotune.models.common import rope, shape


def _read(config: Config) -> dict[str, Any]:
    return {
        **shape(config),
        **rope(config),
        "sliding_window": config.take("sliding_window", None),
    }


ARCHITECTURE = Architecture(
    name="mistral", model_types=("mistral",), classes=("MistralForCausalLM",), read=_read
)
