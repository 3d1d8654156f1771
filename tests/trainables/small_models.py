"""A small model of each architecture, as a config.json, and Hugging Face's weights by our names."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from autotune.model import Model
from autotune.models import model_from_mapping

SEQUENCE = 16
WINDOW = 5

_SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 64,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_NEOX = {key: value for key, value in _SIZES.items() if key != "num_key_value_heads"}
_GPT2 = {"n_layer": 4, "n_embd": 64, "n_head": 8, "n_positions": 32, "vocab_size": 512}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}
_LATENT = {
    **_SIZES,
    "num_key_value_heads": 8,
    "head_dim": 8,  # what Hugging Face rotates: qk_rope_head_dim
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "model_type": "llama", "rope_theta": 1e4},
    "llama with scaling, biases, tied": {
        **_SIZES,
        "model_type": "llama",
        "rope_theta": 5e3,
        "rope_scaling": _LLAMA3,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "mistral": {**_SIZES, "model_type": "mistral", "sliding_window": WINDOW, "head_dim": 16},
    "qwen2": {**_SIZES, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**_SIZES, "model_type": "qwen3", "head_dim": 16},
    "gemma2": {**_SIZES, **_GEMMA, "model_type": "gemma2"},
    "gemma2 with low caps": {
        **_SIZES,
        **_GEMMA,
        "model_type": "gemma2",
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        **_SIZES,
        **_GEMMA,
        "model_type": "gemma3_text",
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        },
    },
    "phi3": {**_SIZES, "model_type": "phi3", "sliding_window": WINDOW, "pad_token_id": 0},
    "olmo2": {**_SIZES, "model_type": "olmo2"},
    "gpt2": {**_GPT2, "model_type": "gpt2"},
    "gpt_neox": {**_NEOX, "model_type": "gpt_neox", "rotary_pct": 0.25},
    "gpt_neox in series": {
        **_NEOX,
        "model_type": "gpt_neox",
        "rotary_pct": 0.5,
        "use_parallel_residual": False,
    },
    "mixtral": {**_SIZES, "model_type": "mixtral", "num_local_experts": 8},
    "qwen3_moe": {
        **_SIZES,
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "head_dim": 16,
        "norm_topk_prob": False,
    },
    "deepseek_v2": {**_LATENT, "model_type": "deepseek_v2", "q_lora_rank": None},
    "deepseek_v3": {**_LATENT, "model_type": "deepseek_v3", "q_lora_rank": 20},
}


def small_model(name: str) -> Model:
    """The model of that config, as the registry reads it."""
    return model_from_mapping(
        {**CONFIGS[name], "sequence_length": SEQUENCE, "global_batch_size": 8}
    )


def as_ours(theirs: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Weights of Hugging Face's model by the names of the worker's."""
    renamed = {}
    for name, value in theirs.items():
        if not name.endswith("e_score_correction_bias"):  # zero: it is no parameter
            renamed[_rename(name)] = _ordered(_rename(name), value, model)
    return _joined(renamed, model)


def _joined(weights: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Matrices that read the same input are one of ours, and so are their biases."""
    parts = {"inner_proj": ("gate_proj", "up_proj")}
    if model.latent_attention is None:
        parts["qkv_proj"] = ("q_proj", "k_proj", "v_proj")
    for ours, names in parts.items():
        for last in [name for name in weights if f".{names[-1]}." in name]:
            each = [last.replace(names[-1], name) for name in names]
            rows = [weights.pop(name) for name in each if name in weights]
            weights[last.replace(names[-1], ours)] = torch.cat(rows)
    return weights


def _rename(name: str) -> str:
    for theirs, ours in _RENAMED:
        name = re.sub(theirs, ours, name)
    return name


_RENAMED = (
    (r"^(model|transformer|gpt_neox)\.", ""),
    (r"^(layers|h)\.", "blocks."),
    (r"^(embed_tokens|wte|embed_in)\.", "embedding."),
    (r"^wpe\.", "positions."),
    (r"^(norm|ln_f|final_layer_norm)\.", "head.norm."),
    (r"^(lm_head|embed_out)\.", "head.lm_head."),
    (r"\.(attn|attention)\.", ".self_attn."),
    (r"\.ln_1\.", ".input_layernorm."),
    (r"\.ln_2\.", ".post_attention_layernorm."),
    (r"\.self_attn\.(c_proj|dense)\.", ".self_attn.o_proj."),
    (r"\.mlp\.(c_fc|dense_h_to_4h)\.", ".mlp.up_proj."),
    (r"\.mlp\.(c_proj|dense_4h_to_h)\.", ".mlp.down_proj."),
    (r"\.mlp\.experts\.", ".mlp."),
    (r"\.gate_up_proj\.", ".inner_proj."),
    (r"\.(c_attn|query_key_value)\.", ".qkv_proj."),
)


def _ordered(name: str, value: Tensor, model: Model) -> Tensor:
    """Inputs and outputs in our order."""
    if model.architecture == "gpt2" and value.dim() == 2 and name.startswith("blocks."):
        return value.T  # its matrices are [inputs, outputs]
    if model.architecture == "gpt_neox" and ".qkv_proj." in name:
        heads = value.unflatten(0, (model.num_attention_heads, 3, model.head_size))
        return heads.transpose(0, 1).flatten(0, 2)  # of each head, query, key and value
    if model.latent_attention is not None:
        rotated, each = model.latent_attention.rotated_head_size, model.head_size
        if ".q_proj." in name or ".q_b_proj." in name:
            heads = value.unflatten(0, (-1, each))
            return torch.stack([_halves(head, rotated) for head in heads]).flatten(0, 1)
        if ".kv_a_proj_with_mqa." in name:
            return _halves(value, rotated)
    return value


def _halves(rows: Tensor, rotated: int) -> Tensor:
    """The last rows are rotated in pairs of neighbours there, of two halves here."""
    kept, turned = rows[:-rotated], rows[-rotated:]
    return torch.cat((kept, turned[0::2], turned[1::2]))
