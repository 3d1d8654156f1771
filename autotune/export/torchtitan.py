"""Export for torchtitan: a Python module with its configuration, and launch.sh.

Since release 0.3 torchtitan reads no TOML files, but calls a function that returns a
Trainer.Config. A TOML file for releases 0.2 is written beside it.
"""

from typing import Any

from autotune.errors import InputError
from autotune.export._format import Export, Format
from autotune.export._limits import (
    cannot,
    gpu_note,
    kernel_notes,
    refuse_other_models,
)
from autotune.export._script import heading, script, torchrun
from autotune.export._torchtitan import RELEASE_OF_TOML, job_fields, toml_job
from autotune.layout import Layout
from autotune.model import Model
from autotune.request import Request

CHECKED_AGAINST = f"torchtitan 0.3.0 (job.toml: {RELEASE_OF_TOML})"
_PROGRAM = "torchtitan"
_EXPRESSED = frozenset(
    {
        "scaled rotary frequencies", "tied embeddings", "a mixture of experts",
        "norms of the heads of queries and keys",
        "heads of another width than hidden_size / heads",
    }
)  # fmt: skip
_MODULE = '''\
"""The configuration of a training run for torchtitan (--module layout_config --config train)."""

{heading}

from functools import partial

from torch import nn

from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.optimizer import default_adamw
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.models.{family} import {names}
from torchtitan.models.{family}.model import {block}
from torchtitan.models.{family}.state_dict_adapter import {adapter}
from torchtitan.models.common import {rope}, Embedding, Linear, RMSNorm
from torchtitan.models.common import config_utils
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

NORMAL = {{"weight": partial(nn.init.normal_, std=0.02)}}
ONES = {{"weight": nn.init.ones_}}
SKIPPED = {{"weight": skip_param_init}}  # tied to the output matrix


def norm(size):
    return RMSNorm.Config(normalized_shape=size, eps={epsilon}, param_init=ONES)


def block():
    return {block}.Config(
        attention_norm=norm({hidden}),
        ffn_norm=norm({hidden}),
        attention=config_utils.make_gqa_config(
            dim={hidden},
            n_heads={heads},
            n_kv_heads={key_value_heads},
            head_dim={head_size},
            wqkv_param_init=NORMAL,
            wo_param_init=NORMAL,
            inner_attention=config_utils.get_attention_config("{kernel}"),
            fuse_qkv=True,
            qk_norm={qk_norm},
            rope={rope}.Config(
                dim={head_size}, max_seq_len={length}, theta={theta}{scaling}
            ),
        ),
{feed_forward}
    )


def model():
    return {model}.Config(
        dim={hidden},
        vocab_size={vocabulary},
        enable_weight_tying={tied},
        tok_embeddings=Embedding.Config(
            num_embeddings={vocabulary},
            embedding_dim={hidden},
            param_init={embedding_init},
        ),
        norm=norm({hidden}),
        lm_head=Linear.Config(
            in_features={hidden}, out_features={vocabulary}, param_init=NORMAL
        ),
        layers=[block() for _ in range({blocks})],
    )


def train() -> Trainer.Config:
    return Trainer.Config(
        model_spec=ModelSpec(
            name="{family}",
            flavor="layout",
            model=model(),
            parallelize_fn={parallelize},
            pipelining_fn=pipeline_llm,
            post_optimizer_build_fn=None,
            state_dict_adapter={adapter},
        ),
        loss=CrossEntropyLoss.Config(global_vocab_size={vocabulary}),
        optimizer=default_adamw(lr=1e-4),
        dataloader=HuggingFaceTextDataLoader.Config(dataset="c4"),
        training=TrainingConfig(
            local_batch_size={local_batch},
            global_batch_size={global_batch},
            seq_len={length},
            max_norm={clipping},
            steps=20,
            mixed_precision_param="{precision}",
            disable_cuda_graphs=True,
        ),
        parallelism=ParallelismConfig(
            data_parallel_replicate_degree={replicas},
            data_parallel_shard_degree={shards},
            fsdp_reshard_after_forward="{reshard}",
            tensor_parallel_degree={tensor},
            enable_sequence_parallel={sequence},
            pipeline_parallel_degree={stages},
            pipeline_parallel_schedule="1F1B",
            pipeline_parallel_microbatch_size={micro_batch},
            # Equal numbers of blocks on each stage.
            pipeline_parallel_first_stage_less_layers=0,
            pipeline_parallel_last_stage_less_layers=0,
        ),
        activation_checkpoint={checkpointing},
        compile=CompileConfig(enable={compiled}, components=["model"]),
    )
'''
_DENSE = """\
        feed_forward=config_utils.make_ffn_config(
            dim={hidden}, hidden_dim={width}, w1_param_init=NORMAL, w2w3_param_init=NORMAL
        ),"""
_EXPERTS = """\
        moe=config_utils.make_moe_config(
            num_experts={count},
            load_balance_coeff=None,
            router=config_utils.make_router_config(
                dim={hidden},
                num_experts={count},
                gate_param_init=NORMAL,
                top_k={per_token},
                score_func="{scoring}",
                route_norm={normalised},
            ),
            routed_experts=config_utils.make_routed_experts_config(
                dim={hidden},
                hidden_dim={width},
                num_experts={count},
                top_k={per_token},
                param_init={{name: NORMAL["weight"] for name in ("w1_EFD", "w2_EDF", "w3_EFD")}},
                comm_backend="standard",
            ),
        ),"""
# torchtitan's model for what a model has, with the classes and functions of its package.
_LLAMA = {
    "family": "llama3", "names": "Llama3Model, parallelize_llama", "model": "Llama3Model",
    "block": "Llama3TransformerBlock", "adapter": "Llama3StateDictAdapter",
    "parallelize": "parallelize_llama", "rope": "ComplexRoPE",
}  # fmt: skip
_QWEN = {
    "family": "qwen3", "names": "Qwen3Model, parallelize_qwen3", "model": "Qwen3Model",
    "block": "Qwen3TransformerBlock", "adapter": "Qwen3StateDictAdapter",
    "parallelize": "parallelize_qwen3", "rope": "CosSinRoPE",
}  # fmt: skip
_CHECKPOINTING = {
    "none": "None",
    "selective": "SelectiveAC.Config()",
    "full": "FullAC.Config()",
}


def _export(layout: Layout, request: Request) -> Export:
    """layout_config.py and launch.sh."""
    model = request.space.model
    _refuse(layout, request)
    kernel = "flex" if _is_plain(layout, request) else "varlen"
    notes = [*gpu_note(request, _PROGRAM), *_notes(layout, kernel)]
    comment = heading(layout, request, CHECKED_AGAINST, notes)
    recomputed = layout.activation_checkpointing
    content = _MODULE.format(
        heading=comment,
        **(_QWEN if model.qk_norm == "heads" or model.experts else _LLAMA),
        **_model(model),
        **{**job_fields(layout, request), "checkpointing": _CHECKPOINTING[recomputed]},
        kernel=kernel,
    )
    command = [
        'env PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"',
        *torchrun(request.space.cluster),
        "-m torchtitan.train --module layout_config --config train",
    ]
    return Export(
        files={
            "layout_config.py": content,
            "job.toml": toml_job(layout, request, comment),
            "launch.sh": script(comment, command, variables=request.env),
        },
        notes=tuple(notes),
    )


def _refuse(layout: Layout, request: Request) -> None:
    model = request.space.model
    refuse_other_models(request, _PROGRAM, _EXPRESSED)
    if model.rope_scaling and (model.qk_norm == "heads" or model.experts):
        raise cannot(request, _PROGRAM, "scaled rotary frequencies in a Qwen 3")
    if model.experts and (model.experts.shared_intermediate_size or model.experts.dense_layers):
        raise cannot(request, _PROGRAM, "shared experts, or blocks without experts among others")
    if model.tie_word_embeddings and layout.pipeline_parallel > 1:
        raise InputError(
            f"{_PROGRAM} has no pipeline parallelism for tied embeddings: pipeline_parallel must "
            f"be 1, got {layout.pipeline_parallel}"
        )


def _is_plain(layout: Layout, request: Request) -> bool:
    """Whether no FlashAttention kernel can be used."""
    return layout.attention_kernel == "math" or request.space.precision == "fp32"


def _notes(layout: Layout, kernel: str) -> list[str]:
    nearest = {
        "flex": "FlexAttention, with the mask of documents",
        "varlen": "FlashAttention of variable length (varlen), with the mask of documents",
    }[kernel]
    notes = kernel_notes(layout, nearest, _PROGRAM)
    if layout.data_parallel > 1 and layout.zero_stage in (1, 2):
        notes.append(
            f"{_PROGRAM} has no ZeRO {layout.zero_stage}; nearest: FSDP2 that keeps weights after "
            "the forward pass and shards them between steps."
        )
    if layout.activation_checkpointing == "selective":
        notes.append(
            f"{_PROGRAM} cannot recompute the attention core alone; nearest: its selective "
            "checkpointing by operation, which recomputes every second matrix product."
        )
    return notes


def _model(model: Model) -> dict[str, Any]:
    scaling = ""
    if scaled := model.rope_scaling:
        scaling = (
            f',\n                scaling="llama", scaling_factor={scaled.factor}, '
            f"low_freq_factor={scaled.low_freq_factor},\n"
            f"                high_freq_factor={scaled.high_freq_factor}, "
            f"original_max_position_embeddings={scaled.original_max_position_embeddings},"
        )
    return {
        "hidden": model.hidden_size,
        "heads": model.num_attention_heads,
        "key_value_heads": model.num_key_value_heads,
        "head_size": model.head_size,
        "epsilon": model.rms_norm_eps,
        "theta": model.rope_theta,
        "scaling": scaling,
        "qk_norm": f"norm({model.head_size})" if model.qk_norm == "heads" else None,
        "vocabulary": model.vocab_size,
        "tied": model.tie_word_embeddings,
        "embedding_init": "SKIPPED" if model.tie_word_embeddings else "NORMAL",
        "blocks": model.num_hidden_layers,
        "length": model.sequence_length,
        "feed_forward": _feed_forward(model),
    }


def _feed_forward(model: Model) -> str:
    experts = model.experts
    if experts is None:
        return _DENSE.format(hidden=model.hidden_size, width=model.intermediate_size)
    return _EXPERTS.format(
        hidden=model.hidden_size,
        width=experts.intermediate_size,
        count=experts.count,
        per_token=experts.per_token,
        scoring=experts.scoring,
        normalised=experts.normalised,
    )


FORMAT = Format(checked_against=CHECKED_AGAINST, export=_export)
