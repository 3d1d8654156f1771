"""Export for nanotron: its YAML file, and launch.sh."""

from typing import Any

import yaml

from autotune.export._format import Export, Format
from autotune.export._limits import gpu_note, kernel_notes, refuse_other_models, window_of
from autotune.export._script import heading, script, torchrun
from autotune.layout import Layout
from autotune.model import Model
from autotune.request import Request
from autotune.trial.deepspeed_config import GRADIENT_CLIPPING

CHECKED_AGAINST = "nanotron's main branch of 2025 (names of its configuration; it was not run)"
_PROGRAM = "nanotron"
_EXPRESSED = frozenset(
    {"tied embeddings", "biases of queries, keys and values", "a sliding window"}
)
_FLASH = ("flash_attn", "flash_attn_4", "flash1", "flash2")
# The kernels that its implementations are; the others are replaced.
_SAME = ("sdpa_flash", "flash_attn", "flash2")


def _export(layout: Layout, request: Request) -> Export:
    """config.yaml, and launch.sh, which needs a clone of nanotron in NANOTRON."""
    refuse_other_models(request, _PROGRAM, _EXPRESSED)
    notes = [*gpu_note(request, _PROGRAM), *_notes(layout, request)]
    comment = heading(layout, request, CHECKED_AGAINST, notes)
    command = [
        *torchrun(request.space.cluster),
        '"${NANOTRON:?folder of a clone of nanotron}/run_train.py"',
        '--config-file "$here/config.yaml"',
    ]
    # The order of its collectives must be that of the calls.
    variables = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", **request.env}
    content = yaml.safe_dump(_config(layout, request), sort_keys=False)
    return Export(
        files={
            "config.yaml": f"{comment}\n{content}",
            "launch.sh": script(comment, command, variables=variables),
        },
        notes=tuple(notes),
    )


def _attention(layout: Layout, model: Model) -> str:
    flash = layout.attention_kernel in _FLASH or window_of(model) is not None
    return "flash_attention_2" if flash else "sdpa"


def _notes(layout: Layout, request: Request) -> list[str]:
    kernel = _attention(layout, request.space.model)
    notes = kernel_notes(layout, "" if layout.attention_kernel in _SAME else kernel, _PROGRAM)
    if layout.data_parallel > 1 and layout.zero_stage > 1:
        notes.append(
            f"{_PROGRAM} has no ZeRO {layout.zero_stage}; nearest: ZeRO 1, which needs more memory."
        )
    if layout.activation_checkpointing == "selective":
        notes.append(
            f"{_PROGRAM} cannot recompute the attention core alone; nearest: no checkpointing, "
            "which needs more memory."
        )
    if layout.torch_compile:
        notes.append(f"{_PROGRAM} does not compile blocks with torch.compile.")
    return notes


def _config(layout: Layout, request: Request) -> dict[str, Any]:
    model = request.space.model
    bf16 = request.space.precision == "bf16"
    return {
        "general": {"project": "autotune", "run": "layout", "seed": request.seed % 2**32},
        "parallelism": {
            "dp": layout.data_parallel,
            "pp": layout.pipeline_parallel,
            "tp": layout.tensor_parallel,
            "pp_engine": "1f1b",
            "tp_mode": "REDUCE_SCATTER" if layout.sequence_parallel else "ALL_REDUCE",
            "tp_linear_async_communication": layout.sequence_parallel,
            "recompute_layer": layout.activation_checkpointing == "full",
        },
        "model": {
            "model_config": _model(layout, model),
            "init_method": {"std": 0.02},
            "dtype": "bfloat16" if bf16 else "float32",
            "make_vocab_size_divisible_by": 1,
        },
        "tokens": {
            "sequence_length": model.sequence_length,
            "train_steps": 20,
            "micro_batch_size": layout.micro_batch_size,
            "batch_accumulation_per_replica": layout.gradient_accumulation_steps,
        },
        "optimizer": {
            "optimizer_factory": {
                "name": "adamW",
                "adam_beta1": 0.9,
                "adam_beta2": 0.95,
                "adam_eps": 1.0e-8,
                "torch_adam_is_fused": True,
            },
            "zero_stage": min(layout.zero_stage, 1),
            "weight_decay": 0.1,
            "clip_grad": GRADIENT_CLIPPING,
            "accumulate_grad_in_fp32": bf16,
            "learning_rate_scheduler": {
                "learning_rate": 1.0e-4,
                "lr_warmup_style": "linear",
                "lr_decay_style": "cosine",
            },
        },
        # Without a dataset nanotron makes up tokens.
        "data_stages": [
            {
                "name": "train",
                "start_training_step": 1,
                "data": {"dataset": None, "seed": request.seed % 2**32},
            }
        ],
    }


def _model(layout: Layout, model: Model) -> dict[str, Any]:
    """Fields of its Qwen2Config or LlamaConfig; the flag tells which."""
    window = window_of(model)
    is_qwen = model.qkv_bias or window is not None
    fields: dict[str, Any] = {
        "is_qwen2_config" if is_qwen else "is_llama_config": True,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": model.sequence_length,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_hidden_layers,
        "num_key_value_heads": model.num_key_value_heads,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
        "rope_interleaved": False,
        "tie_word_embeddings": model.tie_word_embeddings,
        "vocab_size": model.vocab_size,
        "attention_bias": model.qkv_bias,
        "_attn_implementation": _attention(layout, model),
    }
    return {**fields, "sliding_window_size": window} if window is not None else fields


FORMAT = Format(checked_against=CHECKED_AGAINST, export=_export)
