"""Export for NeMo's Megatron-Bridge: launch.sh with overrides of its recipe for any GPT."""

import json
from collections.abc import Mapping
from typing import Any

from autotune.errors import InputError
from autotune.export import _megatron
from autotune.export._format import Export, Format
from autotune.export._limits import cannot, gpu_note
from autotune.export._script import heading, script, torchrun
from autotune.layout import Layout
from autotune.request import Request
from autotune.trial.deepspeed_config import GRADIENT_CLIPPING

CHECKED_AGAINST = "megatron-bridge 0.6.2"
RECIPE = "vanilla_gpt_pretrain_config"
"""The recipe without a model of its own."""
_PROGRAM = "Megatron-Bridge"
# Transformer Engine's switches of its implementations. Overrides cannot name one, because the field
# has an enumeration.
_SWITCHES = {"flash": "NVTE_FLASH_ATTN", "fused": "NVTE_FUSED_ATTN", "unfused": "NVTE_UNFUSED_ATTN"}


def _export(layout: Layout, request: Request) -> Export:
    """launch.sh, which needs a clone of Megatron-Bridge in MEGATRON_BRIDGE."""
    model = request.space.model
    if model.latent_attention:
        raise cannot(request, _PROGRAM, "latent attention in its recipe for any GPT")
    if request.space.precision == "fp32" and layout.pipeline_parallel > 1:
        raise InputError(
            f"overrides of {_PROGRAM} have no fp32 for pipeline stages: pipeline_parallel must be "
            f"1, got {layout.pipeline_parallel}"
        )
    notes = [*gpu_note(request, _PROGRAM), *_megatron.notes(layout, _PROGRAM)]
    if model.max_position_embeddings not in (None, model.sequence_length):
        notes.append("Its learned position embedding has as many rows as a sequence has tokens.")
    comment = heading(layout, request, CHECKED_AGAINST, notes)
    fields = _megatron.fields(layout, request, _PROGRAM)
    backend = fields.pop("attention_backend")
    variables = {switch: str(int(kind == backend)) for kind, switch in _SWITCHES.items()}
    command = [
        *torchrun(request.space.cluster),
        '"${MEGATRON_BRIDGE:?folder of a clone of Megatron-Bridge}/scripts/training/run_recipe.py"',
        f"\\\n  --recipe {RECIPE}",
        *(f"\\\n  '{override}'" for override in _overrides(fields, layout, request)),
        '\\\n  "train.train_iters=${STEPS:-20}"',
    ]
    content = script(comment, command, variables={**variables, **request.env})
    return Export(files={"launch.sh": content}, notes=tuple(notes))


def _overrides(fields: Mapping[str, Any], layout: Layout, request: Request) -> list[str]:
    """Fields of the recipe's ConfigContainer with their values."""
    model = request.space.model
    overrides = [(f"model.{name}", value) for name, value in fields.items() if value is not None]
    overrides += [
        ("model.attention_backend", None),
        ("model.vocab_size", model.vocab_size),
        ("model.should_pad_vocab", False),
    ]
    sharding = _megatron.SHARDING.get(layout.zero_stage)
    overrides += [
        ("dataset.seq_length", model.sequence_length),
        ("train.micro_batch_size", layout.micro_batch_size),
        ("train.global_batch_size", model.global_batch_size),
        ("optimizer.clip_grad", GRADIENT_CLIPPING),
        ("ddp.overlap_grad_reduce", layout.data_parallel > 1),
    ]
    for section in ("ddp", "optimizer"):
        overrides.append((f"{section}.use_distributed_optimizer", layout.zero_stage > 0))
    if sharding is not None:
        overrides += [
            ("dist.use_megatron_fsdp", True),
            ("ddp.use_megatron_fsdp", True),
            ("ddp.data_parallel_sharding_strategy", sharding),
            ("checkpoint.ckpt_format", "fsdp_dtensor"),
        ]
    precision = {"bf16": "bf16_mixed", "fp32": None}[request.space.precision]
    overrides.append(("mixed_precision", precision))
    return [f"{name}={_written(value)}" for name, value in overrides]


def _written(value: Any) -> str:
    """The value as Hydra's overrides are written."""
    if isinstance(value, str):
        return f'"{value}"' if "|" in value else value
    return json.dumps(value).replace(" ", "")


FORMAT = Format(checked_against=CHECKED_AGAINST, export=_export)
