"""Memory of weights, gradients and optimiser states of a pipeline stage, by trainer."""

import dataclasses
from collections.abc import Callable

import numpy as np

from autotune.cost.columns import Array, Columns
from autotune.cost.constants import Constants
from autotune.cost.gathering import kept_gathered
from autotune.cost.setting import GB, Setting
from autotune.trial.deepspeed_config import SMALLEST_BUCKET

# Bytes per parameter of AdamW in mixed precision: fp32 weights and two moments (Rajbhandari et al.
# 2020, arXiv 1910.02054, section 3.1).
_MASTER_BYTES = 4
_MOMENT_BYTES = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes per rank of a stage's weights, gradients and optimiser states, each [n, s]."""

    weights: Array
    gradients: Array
    optimiser: Array
    """Optimiser states that are held all the time."""
    gradients_in_update: Array
    """Gradients during the update."""
    update: Array
    """Temporary memory of the optimiser's update."""
    gradients_before: Array
    """Gradients that exist when the backward pass with the peak memory begins; the others are
    allocated while activations are freed."""
    buffers: Array
    """Buffers held during forward and backward passes."""
    update_buffers: Array
    """Buffers held during the update."""


StatesOf = Callable[[Columns, Array, Setting, Constants], States]
"""From layouts, and parameters per rank of each stage [n, s] (divided by tensor parallelism)."""


def deepspeed_states(
    columns: Columns, parameters: Array, setting: Setting, constants: Constants
) -> States:
    """DeepSpeed 0.19, from its optimisers' source and measurements (docs/results/cpu.md).

    ZeRO shards as in Rajbhandari et al. 2020, table 1, with these differences: stage 3 keeps some
    gathered parameters; the update begins when a rank has its shard of the gradients alone; for it
    bf16 makes an fp32 copy of the shard, and stages 1 and 2 also flatten it into a new tensor;
    buckets are added (while the last one is reduced, before the update begins, also what is sent
    of it). The first
    micro-batch's backward pass allocates the gradients. The pipeline engine does the same.
    Gradients that are accumulated in fp32 are held in a buffer of their own, not sharded.
    """
    stage, replicas = columns.zero_stage[:, None], columns.data_parallel[:, None]
    element = setting.element_bytes
    mixed_precision = setting.precision == "bf16"
    bucket = np.clip(parameters, SMALLEST_BUCKET, constants["message_parameters"])
    weights = element * np.where(stage >= 3, parameters / replicas, parameters)
    gathered = element * np.where(stage >= 3, kept_gathered(columns, parameters, setting), 0)
    gradients = element * np.where(stage >= 2, parameters / replicas, parameters)
    shard = np.where(stage >= 1, parameters / replicas, parameters)
    own_gradients = element * shard
    if mixed_precision and setting.trainer.gradient_bytes == _MASTER_BYTES:
        gradients = gradients + _MASTER_BYTES * parameters
        own_gradients = gradients
    masters = np.where(stage >= 1, _MASTER_BYTES, 0)
    copies = np.where(stage >= 1, constants["update_bytes"], 0.0)
    copies = copies + (_MASTER_BYTES if mixed_precision else 0)
    copies = copies + element * ((stage == 1) | (stage == 2))
    buckets = element * bucket * np.where(stage >= 3, 2, 1)
    # A bucket is flattened once more for an all-reduce, or the part for each of the ranks.
    reduced = np.ones_like(parameters)
    for of_stage, sharding in setting.trainer.sharding.items():
        if sharding.reduction == "reduce_scatter":
            reduced = np.where(stage == of_stage, 1 / replicas, reduced)
    return States(
        weights=weights,
        gradients=gradients,
        gradients_before=np.where(columns.micro_batches[:, None] > 1, gradients, 0.0),
        gradients_in_update=own_gradients,
        optimiser=(masters + _MOMENT_BYTES) * shard,
        update=copies * shard,
        buffers=buckets + gathered,
        update_buffers=np.where(
            stage >= 3,
            buckets + gathered,
            np.maximum((1 + reduced) * buckets - copies * shard, 0),
        ),
    )


def recorded_states(
    columns: Columns, parameters: Array, setting: Setting, constants: Constants
) -> States:
    """The training code of the recorded runs: bf16 and ZeRO 1. The update takes 4 more bytes per
    parameter of the shard, and a bucket of about 2.8 GiB (both fitted; see DECISIONS.md)."""
    shard = parameters / columns.data_parallel[:, None]
    return States(
        weights=2 * parameters,
        gradients=2 * parameters,
        gradients_before=2 * parameters,
        gradients_in_update=2 * parameters,
        optimiser=(_MASTER_BYTES + _MOMENT_BYTES) * shard,
        update=4 * shard,
        buffers=np.zeros_like(parameters),
        update_buffers=np.minimum(3 * GB, 6 * parameters),
    )


def megatron_states(
    columns: Columns, parameters: Array, setting: Setting, constants: Constants
) -> States:
    """Megatron-LM: 6 bytes per parameter with gradients in fp32, and 12 more that the distributed
    optimiser (ZeRO 1) shards; with gradients in bf16 4 and 16; in fp32 8 and 8 (Megatron-LM,
    docs/source/api-guide/dist_optimizer)."""
    gradient_bytes = setting.trainer.gradient_bytes or setting.element_bytes
    masters = _MASTER_BYTES if setting.precision == "bf16" else 0
    # fp32 copies of the shard's gradients, where they are not fp32 already.
    masters += _MASTER_BYTES if gradient_bytes < _MASTER_BYTES else 0
    # One buffer of all gradients, made before the first step.
    gradients = gradient_bytes * parameters
    shard = np.where(
        columns.zero_stage[:, None] >= 1, parameters / columns.data_parallel[:, None], parameters
    )
    zeros = np.zeros_like(parameters)
    return States(
        weights=setting.element_bytes * parameters,
        gradients=gradients,
        gradients_before=gradients,
        gradients_in_update=gradients,
        optimiser=(masters + _MOMENT_BYTES) * shard,
        update=zeros,
        buffers=zeros,
        update_buffers=zeros,
    )


def fsdp_states(
    columns: Columns, parameters: Array, setting: Setting, constants: Constants
) -> States:
    """PyTorch FSDP: weights, gradients and moments in fp32, sharded; without sharding (stage 0,
    DDP) all of them whole. Blocks are gathered in the precision of the activations: two at a time
    with resharding after the forward pass (stage 3), all of them without (stage 2). The gradients
    of one block are whole until they are reduced."""
    stage, replicas = columns.zero_stage[:, None], columns.data_parallel[:, None]
    shard = np.where(stage >= 2, parameters / replicas, parameters)
    block = np.minimum(
        setting.model.layer_parameters / columns.tensor_parallel[:, None], parameters
    )
    gathered = np.select([stage >= 3, stage == 2], [2 * block, parameters], parameters)
    whole_gradients = np.where(stage >= 2, _MASTER_BYTES * block, 0.0)
    return States(
        weights=_MASTER_BYTES * shard,
        gradients=_MASTER_BYTES * shard,
        gradients_before=np.where(columns.micro_batches[:, None] > 1, _MASTER_BYTES * shard, 0.0),
        gradients_in_update=_MASTER_BYTES * shard,
        optimiser=_MOMENT_BYTES * shard,
        update=np.zeros_like(parameters),
        buffers=setting.element_bytes * gathered + whole_gradients,
        update_buffers=np.zeros_like(parameters),
    )


STATES: dict[str, StatesOf] = {
    "deepspeed": deepspeed_states,
    "recorded": recorded_states,
    "megatron": megatron_states,
    "fsdp": fsdp_states,
}
"""The formulas by the name that trainers' files give."""
