"""megatron-lm, read by Megatron-LM's own parser and validation; megatron-bridge, by Hydra and the
fields of its configuration."""

from pathlib import Path
from typing import Any

import pytest

from autotune.export import format_named
from autotune.layout import Layout
from autotune.model import Model
from autotune.trial.deepspeed_config import GRADIENT_CLIPPING
from tests.frameworks import (
    ARCHITECTURES,
    FRAMEWORKS,
    exported,
    needs_frameworks,
    read,
    request_of,
    started,
    version_in,
)

pytestmark = [needs_frameworks(), pytest.mark.slow, pytest.mark.timeout(900)]

REQUESTS = [request_of(name) for name in ARCHITECTURES] + [
    request_of("llama-3.1-8b", precision="fp32"),
    request_of("mistral-7b-v0.1", sequence_length=8192),
]
STRATEGIES = {2: "optim_grads", 3: "optim_grads_params"}
BACKENDS = {"math": "unfused", "sdpa_cudnn": "fused"}


def of_layout(layout: Layout, model: Model) -> dict[str, Any]:
    """What megatron-core's configuration has to be, by its names."""
    recompute = layout.activation_checkpointing
    return {
        "tensor_model_parallel_size": layout.tensor_parallel,
        "pipeline_model_parallel_size": layout.pipeline_parallel,
        "sequence_parallel": layout.sequence_parallel,
        "recompute_granularity": None if recompute == "none" else recompute,
        "num_layers": model.num_hidden_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.intermediate_size,
        "num_attention_heads": model.num_attention_heads,
        "layernorm_epsilon": model.rms_norm_eps,
        "normalization": {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[model.norm],
        "gated_linear_unit": model.gated_feed_forward,
        "add_bias_linear": model.mlp_bias,
        "add_qkv_bias": model.qkv_bias,
        "activation_func": {"silu": "silu", "gelu_tanh": "gelu"}[model.activation],
    }


def test_the_versions_are_those_installed() -> None:
    core, bridge = (version_in(FRAMEWORKS, f"megatron-{name}") for name in ("core", "bridge"))
    megatron = format_named("megatron-lm").checked_against
    assert megatron == f"Megatron-LM of megatron-core {core}"
    assert format_named("megatron-bridge").checked_against == f"megatron-bridge {bridge}"


def test_megatron_lm_reads_its_arguments(tmp_path: Path) -> None:
    cases, jobs = [], []
    for folder, layout, request in exported(tmp_path, "megatron-lm", REQUESTS):
        arguments, environment = started(folder, "torchrun", MEGATRON_LM="/clone")
        ranks = arguments.index("/clone/pretrain_gpt.py")
        assert arguments[:ranks] == ["--standalone", "--nproc-per-node", "8"]
        cases.append((layout, request.space))
        variables = {name: environment[name] for name in environment if name.startswith("CUDA_")}
        jobs.append(
            {"arguments": arguments[ranks + 1 :], "world_size": 8, "environment": variables}
        )
    kinds = {space.model.architecture for _, space in cases}
    assert kinds >= {"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "phi3", "gpt2"}
    assert "deepseek_v2" in kinds and not kinds & {"gemma2", "olmo2", "gpt_neox"}
    for (layout, space), found in zip(
        cases, read("read_megatron_lm", jobs, FRAMEWORKS), strict=True
    ):
        model = space.model
        wanted = {
            **of_layout(layout, model),
            "data_parallel_size": layout.data_parallel,
            "micro_batch_size": layout.micro_batch_size,
            "global_batch_size": model.global_batch_size,
            "seq_length": model.sequence_length,
            "attention_backend": BACKENDS.get(layout.attention_kernel, "flash"),
            "bf16": space.precision == "bf16",
            "clip_grad": GRADIENT_CLIPPING,
            "use_distributed_optimizer": layout.zero_stage > 0,
            "use_megatron_fsdp": layout.zero_stage > 1,
            "untie_embeddings_and_output_weights": not model.tie_word_embeddings,
            "vocab_size": model.vocab_size - 1,
            "make_vocab_size_divisible_by": 1,
            "position_embedding_type": {"rotary": "rope", "learned": "learned_absolute"}[
                model.positions
            ],
        }
        if model.positions == "rotary":
            wanted["rotary_base"] = model.rope_theta
        if layout.zero_stage > 1:
            wanted["data_parallel_sharding_strategy"] = STRATEGIES[layout.zero_stage]
        if model.experts is not None:
            wanted |= {
                "num_moe_experts": model.experts.count,
                "moe_router_topk": model.experts.per_token,
                "moe_ffn_hidden_size": model.experts.intermediate_size,
            }
        if latent := model.latent_attention:
            wanted |= {"kv_lora_rank": latent.key_value_rank, "v_head_dim": latent.value_head_size}
        else:
            grouped = model.num_key_value_heads < model.num_attention_heads
            wanted |= {
                "kv_channels": model.head_size,
                "qk_layernorm": model.qk_norm == "heads",
                "num_query_groups": model.num_key_value_heads
                if grouped
                else found["num_query_groups"],
            }
        assert {name: found[name] for name in wanted} == wanted, layout.describe()
        window = model.sliding_window
        if window is not None and window < model.sequence_length:
            assert found["window_size"] == [window - 1, 0]


def test_megatron_bridge_has_the_fields(tmp_path: Path) -> None:
    cases, jobs = [], []
    for folder, layout, request in exported(tmp_path, "megatron-bridge", REQUESTS):
        arguments, environment = started(folder, "torchrun", MEGATRON_BRIDGE="/clone")
        recipe = arguments.index("--recipe")
        assert arguments[recipe - 1] == "/clone/scripts/training/run_recipe.py"
        switches = {name: environment[name] for name in environment if name.startswith("NVTE_")}
        backend = BACKENDS.get(layout.attention_kernel, "flash")
        on = {"flash": "NVTE_FLASH_ATTN", "fused": "NVTE_FUSED_ATTN"}.get(
            backend, "NVTE_UNFUSED_ATTN"
        )
        assert [name for name, value in switches.items() if value == "1"] == [on]
        cases.append((layout, request.space))
        jobs.append({"overrides": arguments[recipe + 2 :]})
    found = read("read_megatron_bridge", jobs, FRAMEWORKS)
    for (layout, space), values in zip(cases, found, strict=True):
        model = space.model
        wanted = {f"model.{name}": value for name, value in of_layout(layout, model).items()}
        wanted |= {
            "model.vocab_size": model.vocab_size,
            "model.seq_length": model.sequence_length,
            "dataset.seq_length": model.sequence_length,
            "train.micro_batch_size": layout.micro_batch_size,
            "train.global_batch_size": model.global_batch_size,
            "optimizer.clip_grad": GRADIENT_CLIPPING,
            "ddp.use_distributed_optimizer": layout.zero_stage > 0,
            "mixed_precision": {"bf16": "bf16_mixed", "fp32": None}[space.precision],
        }
        if layout.zero_stage > 1:
            wanted["ddp.data_parallel_sharding_strategy"] = STRATEGIES[layout.zero_stage]
        assert {name: values.get(name) for name in wanted} == wanted, layout.describe()
