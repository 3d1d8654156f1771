"""A layout and its model in the fields of megatron-core, for Megatron-LM and Megatron-Bridge.

Names are those of megatron-core's TransformerConfig and of its GPT model. Values that are the
defaults of megatron-core are left out where they say nothing of the layout.
"""

from typing import Any

from autotune.export._limits import cannot, kernel_notes, refuse_other_models, window_of
from autotune.layout import Layout
from autotune.model import Model
from autotune.request import Request

_EXPRESSED = frozenset(
    {
        "learned positions", "partly rotated heads", "scaled rotary frequencies",
        "a feed-forward network without a gate", "another activation than SiLU",
        "tied embeddings", "biases of queries, keys and values",
        "a bias of the attention's output", "biases of the feed-forward network", "LayerNorm",
        "norms of the heads of queries and keys", "a sliding window", "latent attention",
        "a mixture of experts", "heads of another width than hidden_size / heads",
    }
)  # fmt: skip
# The frequencies are scaled with these constants; only the factor can be chosen.
_ROPE_SCALING = (1.0, 4.0, 8192)
_BACKENDS = {
    "math": ("unfused", ""),
    "sdpa_flash": ("flash", "FlashAttention by Transformer Engine (flash)"),
    "sdpa_cudnn": ("fused", "cuDNN attention by Transformer Engine (fused)"),
    "flash_attn": ("flash", ""),
    "flash2": ("flash", ""),
    "flash_attn_4": ("flash", "FlashAttention by Transformer Engine (flash)"),
    "flash1": ("flash", "FlashAttention by Transformer Engine (flash)"),
    "megatron": ("unfused", ""),
}
SHARDING = {2: "optim_grads", 3: "optim_grads_params"}
"""Sharding strategy of Megatron-FSDP by ZeRO stage."""


def fields(layout: Layout, request: Request, program: str) -> dict[str, Any]:
    """Layout and model by the names of megatron-core. Raises InputError."""
    refuse_other_models(request, program, _EXPRESSED)
    model = request.space.model
    return {
        **_shape(model),
        **_biases(request, program),
        **_activation(request, program),
        **_positions(request, program),
        **_attention(model),
        **_experts(layout, request, program),
        **_parallel(layout, model),
        **_recomputed(layout),
        "attention_backend": _BACKENDS[layout.attention_kernel][0],
    }


def notes(layout: Layout, program: str) -> list[str]:
    """What Megatron does otherwise than the trials did."""
    found = kernel_notes(layout, _BACKENDS[layout.attention_kernel][1], program)
    if layout.torch_compile:
        found.append(f"{program} does not compile blocks with torch.compile.")
    if layout.zero_stage in SHARDING:
        found.append(f"ZeRO {layout.zero_stage} is Megatron-FSDP ({SHARDING[layout.zero_stage]}).")
    return found


def _shape(model: Model) -> dict[str, Any]:
    return {
        "num_layers": model.num_hidden_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.intermediate_size,
        "num_attention_heads": model.num_attention_heads,
        "seq_length": model.sequence_length,
        "share_embeddings_and_output_weights": model.tie_word_embeddings,
        "make_vocab_size_divisible_by": 1,
        "normalization": {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[model.norm],
        "layernorm_epsilon": model.rms_norm_eps,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def _biases(request: Request, program: str) -> dict[str, Any]:
    model = request.space.model
    biases = (model.qkv_bias, model.attention_output_bias, model.mlp_bias)
    if len(set(biases)) > 1 and biases != (True, False, False):
        raise cannot(request, program, "biases of some matrices only")
    return {"add_bias_linear": model.mlp_bias, "add_qkv_bias": model.qkv_bias}


def _activation(request: Request, program: str) -> dict[str, Any]:
    """The fused kernel of a bias and GELU computes its tanh approximation."""
    model = request.space.model
    kind = (model.activation, model.gated_feed_forward)
    known = {
        ("silu", True): ("silu", True),
        ("gelu", False): ("gelu", False),
        ("relu_squared", False): ("squared_relu", False),
    }
    if model.mlp_bias:
        known["gelu_tanh", False] = ("gelu", True)
    if kind not in known:
        gate = "with" if model.gated_feed_forward else "without"
        raise cannot(request, program, f"activation {model.activation} {gate} a gate")
    function, fused = known[kind]
    return {
        "gated_linear_unit": model.gated_feed_forward,
        "activation_func": function,
        "bias_activation_fusion": fused,
    }


def _positions(request: Request, program: str) -> dict[str, Any]:
    model = request.space.model
    if model.positions == "learned":
        return {"position_embedding_type": "learned_absolute"}
    if model.rope_theta != int(model.rope_theta):
        raise cannot(request, program, f"a rotary base of {model.rope_theta}, no whole number")
    found: dict[str, Any] = {
        "position_embedding_type": "rope",
        "rotary_base": int(model.rope_theta),
        "rotary_percent": model.rotary_fraction,
    }
    if scaling := model.rope_scaling:
        others = (
            scaling.low_freq_factor,
            scaling.high_freq_factor,
            scaling.original_max_position_embeddings,
        )
        if others != _ROPE_SCALING:
            raise cannot(request, program, f"scaled rotary frequencies other than {_ROPE_SCALING}")
        found |= {"rope_scaling": True, "rope_scaling_factor": scaling.factor}
    return found


def _attention(model: Model) -> dict[str, Any]:
    if latent := model.latent_attention:
        return {
            "multi_latent_attention": True,
            "rope_type": "rope",
            "q_lora_rank": latent.query_rank,
            "kv_lora_rank": latent.key_value_rank,
            "qk_head_dim": latent.plain_head_size,
            "qk_pos_emb_head_dim": latent.rotated_head_size,
            "v_head_dim": latent.value_head_size,
            # Its norms of the low-rank projections are part of the architecture.
            "qk_layernorm": True,
        }
    found: dict[str, Any] = {
        "kv_channels": model.head_size,
        "num_query_groups": model.num_key_value_heads,
        "qk_layernorm": model.qk_norm == "heads",
    }
    if (window := window_of(model)) is not None:
        found["window_size"] = (window - 1, 0)  # the token itself is not counted
        if model.global_every:
            found["window_attn_skip_freq"] = model.global_every
    return found


def _experts(layout: Layout, request: Request, program: str) -> dict[str, Any]:
    model, experts = request.space.model, request.space.model.experts
    if experts is None:
        return {}
    if experts.scoring == "sigmoid" and not experts.normalised:
        raise cannot(request, program, "sigmoid scores of experts that are not normalised")
    if layout.tensor_parallel > 1 and not layout.sequence_parallel:
        raise cannot(
            request, program, "experts with tensor_parallel > 1 need sequence_parallel there"
        )
    found: dict[str, Any] = {
        "num_moe_experts": experts.count,
        "moe_router_topk": experts.per_token,
        "moe_ffn_hidden_size": experts.intermediate_size,
        "moe_router_score_function": experts.scoring,
        "moe_router_pre_softmax": experts.scoring == "softmax" and not experts.normalised,
        "moe_router_load_balancing_type": "none",
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": True,
        "expert_model_parallel_size": 1,
        "expert_tensor_parallel_size": layout.tensor_parallel,
    }
    if experts.shared_intermediate_size:
        found["moe_shared_expert_intermediate_size"] = experts.shared_intermediate_size
        found["moe_shared_expert_gate"] = experts.shared_gate
    if experts.dense_layers:
        others = model.expert_blocks
        found["moe_layer_freq"] = [0] * (model.num_hidden_layers - others) + [1] * others
    return found


def _parallel(layout: Layout, model: Model) -> dict[str, Any]:
    stages = layout.pipeline_parallel
    found: dict[str, Any] = {
        "tensor_model_parallel_size": layout.tensor_parallel,
        "pipeline_model_parallel_size": stages,
        "sequence_parallel": layout.sequence_parallel,
    }
    blocks, left = divmod(model.num_hidden_layers, stages)
    if left:
        per_stage = ["t" * (blocks + (stage < left)) for stage in range(stages)]
        found["pipeline_model_parallel_layout"] = f"E{'|'.join(per_stage)}L"
    return found


def _recomputed(layout: Layout) -> dict[str, Any]:
    fields: dict[str, dict[str, Any]] = {
        "none": {},
        "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
        "full": {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        },
    }
    return fields[layout.activation_checkpointing]
