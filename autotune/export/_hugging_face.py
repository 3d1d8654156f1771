"""What accelerate and the Trainer of transformers share: models of transformers, DeepSpeed."""

from typing import Any

from autotune.layout import Layout
from autotune.request import Request
from autotune.trial.deepspeed_config import deepspeed_config

# Values of from_pretrained's attn_implementation.
_IMPLEMENTATIONS = {
    "math": "eager",
    "sdpa_flash": "sdpa",
    "sdpa_cudnn": "sdpa",
    "flash_attn": "flash_attention_2",
    "flash_attn_4": "flash_attention_4",
    "flash1": "flash_attention_2",
    "flash2": "flash_attention_2",
    "megatron": "eager",
}


def deepspeed_of(layout: Layout, request: Request) -> dict[str, Any]:
    """DeepSpeed's configuration of the layout."""
    space = request.space
    config = deepspeed_config(
        layout,
        space.model,
        precision=space.precision,
        overlap_communication=space.cluster.device.kind == "gpu",
    )
    # Of the pipeline engine, which neither of them uses.
    return {name: value for name, value in config.items() if name != "pipeline"}


def deepspeed_notes(layout: Layout, request: Request) -> list[str]:
    """What DeepSpeed does not do with that layout."""
    if layout.zero_stage > 0 or request.space.precision == "bf16":
        return []
    return ["DeepSpeed cannot clip gradients by the global norm in fp32 with ZeRO 0."]


def model_notes(layout: Layout) -> list[str]:
    """What the script that loads the model has to do."""
    implementation = _IMPLEMENTATIONS[layout.attention_kernel]
    notes = [
        f"The attention kernel is the model's: load it with attn_implementation={implementation} "
        f"for {layout.attention_kernel}."
    ]
    if layout.rmsnorm_kernel == "fused":
        notes.append("RMSNorm is the model's: models of transformers have no fused one.")
    return notes
