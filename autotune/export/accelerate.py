"""Export for accelerate: configuration files for DeepSpeed and for FSDP, and launch.sh."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from autotune.cluster import Cluster
from autotune.errors import InputError
from autotune.export._format import Export, Format
from autotune.export._hugging_face import deepspeed_notes, deepspeed_of, model_notes
from autotune.export._limits import refuse_parallel
from autotune.export._script import heading, script
from autotune.layout import Layout
from autotune.request import Request
from autotune.trial.deepspeed_config import GRADIENT_CLIPPING

CHECKED_AGAINST = "accelerate 1.15.0"
_PROGRAM = "accelerate"
# Whether FSDP2 frees weights after the forward pass, by the ZeRO stage that this is.
_RESHARDS = {2: False, 3: True}
# Each block is compiled. With DeepSpeed `accelerate launch` does not pass on what the file says.
_COMPILED = {
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true",
}
_NODES = (
    '--machine_rank "${{NODE_RANK:?0 to {last}}}" '
    '--main_process_ip "${{MASTER_ADDR:?address of node 0}}" '
    '--main_process_port "${{MASTER_PORT:-29500}}"'
)


def _export(layout: Layout, request: Request) -> Export:
    """deepspeed.yaml with deepspeed.json, or fsdp.yaml, or both; and launch.sh."""
    refuse_parallel(layout, _PROGRAM, "pipeline_parallel")
    sharded = layout.zero_stage in _RESHARDS or layout.data_parallel == 1
    if layout.tensor_parallel > 1 and not sharded:
        raise InputError(
            f"{_PROGRAM} has tensor parallelism with FSDP only, which is ZeRO 2 or 3, got "
            f"tensor_parallel {layout.tensor_parallel} and zero_stage {layout.zero_stage}"
        )
    deepspeed = deepspeed_of(layout, request)
    notes = [*_notes(layout), *deepspeed_notes(layout, request)]
    comment = heading(layout, request, CHECKED_AGAINST, notes)
    files: dict[str, str] = {}
    if layout.tensor_parallel == 1:
        files["deepspeed.json"] = json.dumps(deepspeed, indent=2) + "\n"
        files["deepspeed.yaml"] = _yaml(comment, _with_deepspeed(layout, request))
    if layout.tensor_parallel > 1 or layout.zero_stage in _RESHARDS:
        files["fsdp.yaml"] = _yaml(comment, _with_fsdp(layout, request))
    default = "deepspeed" if layout.tensor_parallel == 1 else "fsdp"
    command = _command(request.space.cluster, default, with_deepspeed=default == "deepspeed")
    variables = {
        # The Accelerator of the script reads it.
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": str(layout.gradient_accumulation_steps),
        **(_COMPILED if layout.torch_compile else {}),
        **request.env,
    }
    files["launch.sh"] = script(comment, command, variables=variables)
    return Export(files=files, notes=tuple(notes))


def _notes(layout: Layout) -> list[str]:
    notes = [
        f"The batch size is the data loader's: {layout.micro_batch_size} sequences per device.",
        *model_notes(layout),
    ]
    if layout.activation_checkpointing == "selective":
        notes.append(
            f"{_PROGRAM} cannot recompute the attention core alone; nearest: no checkpointing, "
            "which needs more memory."
        )
    if layout.activation_checkpointing == "full" and layout.tensor_parallel == 1:
        notes.append(
            "With DeepSpeed the script checkpoints: model.gradient_checkpointing_enable()."
        )
    if layout.tensor_parallel > 1 or layout.zero_stage in _RESHARDS:
        notes.append(
            "With FSDP the script clips gradients: "
            f"accelerator.clip_grad_norm_(model.parameters(), {GRADIENT_CLIPPING})."
        )
    if layout.tensor_parallel > 1:
        notes.append(
            "Weights are split by the tensor-parallel plan of the model, and so is the sequence."
        )
    return notes


def _shared(layout: Layout, request: Request) -> dict[str, Any]:
    cluster = request.space.cluster
    virtual = cluster.device.kind == "cpu"
    content: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "num_machines": 1 if virtual else cluster.nodes,
        "num_processes": cluster.devices,
        "use_cpu": virtual,
        "rdzv_backend": "static",
    }
    if layout.torch_compile:
        content["dynamo_config"] = {
            "dynamo_backend": "INDUCTOR",
            "dynamo_use_regional_compilation": True,
        }
    return content


def _with_deepspeed(layout: Layout, request: Request) -> dict[str, Any]:
    return {
        **_shared(layout, request),
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            # launch.sh gives the whole path.
            "deepspeed_config_file": "deepspeed.json",
            "deepspeed_multinode_launcher": "standard",
            "zero3_init_flag": layout.zero_stage == 3,
        },
    }


def _with_fsdp(layout: Layout, request: Request) -> dict[str, Any]:
    content = {
        **_shared(layout, request),
        "distributed_type": "FSDP",
        "mixed_precision": "bf16" if request.space.precision == "bf16" else "no",
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": _RESHARDS.get(layout.zero_stage, False),
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_activation_checkpointing": layout.activation_checkpointing == "full",
            "fsdp_offload_params": False,
            "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        },
    }
    if layout.tensor_parallel > 1:
        content["parallelism_config"] = {
            "parallelism_config_tp_size": layout.tensor_parallel,
            "parallelism_config_dp_shard_size": layout.data_parallel,
        }
    return content


def _command(cluster: Cluster, default: str, *, with_deepspeed: bool) -> list[str]:
    words = ["accelerate launch", f'--config_file "$here/${{CONFIG:-{default}}}.yaml"']
    if cluster.nodes > 1 and cluster.device.kind == "gpu":
        words.append(_NODES.format(last=cluster.nodes - 1))
    if with_deepspeed:
        words.append('--deepspeed_config_file "$here/deepspeed.json"')
    return [*words, '\\\n  "${TRAIN_SCRIPT:?your script, which makes an Accelerator}"']


def _yaml(comment: str, content: Mapping[str, Any]) -> str:
    return f"{comment}\n{yaml.safe_dump(dict(content), sort_keys=False)}"


FORMAT = Format(checked_against=CHECKED_AGAINST, export=_export)
