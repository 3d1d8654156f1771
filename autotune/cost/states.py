"""Bytes of a stage's weights, gradients and optimiser states, as each trainer keeps them."""

import dataclasses
from collections.abc import Callable

import numpy as np

from autotune.cost.columns import Array, Columns
from autotune.cost.constants import Constants
from autotune.cost.setting import GB, Setting
from autotune.trial.deepspeed_config import LARGEST_BUCKET, SMALLEST_BUCKET

# Bytes per parameter of AdamW in mixed precision: fp32 weights and two moments (Rajbhandari et al.
# 2020, arXiv 1910.02054, section 3.1).
_MASTER_BYTES = 4
_MOMENT_BYTES = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes of one stage's parameters and what belongs to them, each [n, s]."""

    weights: Array
    gradients: Array
    optimiser: Array
    """Held all the time."""
    update: Array
    """More of the optimiser, needed only while it updates."""
    gradients_before: Array
    """Of the gradients, what exists when the backward pass that needs most memory begins; the rest
    comes as activations go."""
    buffers: Array
    """Held in the passes."""
    update_buffers: Array
    """Held in the update."""


StatesOf = Callable[[Columns, Array, Setting, Constants], States]
"""From layouts and the parameters of their stages [n, s], tensor parallelism taken off."""


def deepspeed_states(
    columns: Columns, parameters: Array, setting: Setting, constants: Constants
) -> States:
    """DeepSpeed 0.19's engines, as read from its optimisers and measured (docs/results/cpu.md).

    Stages shard as in Rajbhandari et al. 2020, table 1, with these differences: weights that are
    gathered stay up to a limit of 10^9 (stage 3), bf16 makes an fp32 copy of the gradient shard to
    update with, stages 1 and 2 lay that shard out anew for it, and buckets come on top (twice while
    the last one is reduced, which is over when the update begins). The first micro-batch's backward
    pass makes the gradients. The pipeline engine is no different.
    """
    stage, replicas = columns.zero_stage[:, None], columns.data_parallel[:, None]
    element = setting.element_bytes
    mixed = setting.precision == "bf16"
    bucket = np.clip(parameters, SMALLEST_BUCKET, LARGEST_BUCKET)
    weights = element * np.where(stage >= 3, parameters / replicas, parameters)
    gathered = element * np.where(stage >= 3, np.minimum(parameters, 1e9), 0)
    gradients = element * np.where(stage >= 2, parameters / replicas, parameters)
    shard = np.where(stage >= 1, parameters / replicas, parameters)
    masters = np.where(stage >= 1, _MASTER_BYTES, 0)
    copies = (_MASTER_BYTES if mixed else 0) + np.where(stage >= 1, constants["update_bytes"], 0.0)
    copies = copies + element * ((stage == 1) | (stage == 2))
    buckets = element * bucket * np.where(stage >= 3, 2, 1)
    return States(
        weights=weights,
        gradients=gradients,
        gradients_before=np.where(columns.micro_batches[:, None] > 1, gradients, 0.0),
        optimiser=(masters + _MOMENT_BYTES) * shard,
        update=copies * shard,
        buffers=buckets + gathered,
        update_buffers=np.where(
            stage >= 3, buckets + gathered, np.maximum(2 * buckets - copies * shard, 0)
        ),
    )


def recorded_states(
    columns: Columns, parameters: Array, setting: Setting, constants: Constants
) -> States:
    """The code base of the recorded runs: bf16, ZeRO 1; 4 bytes per parameter more of its shard
    and a bucket of about 2.8 GiB while it updates (found by fitting; see DECISIONS.md)."""
    shard = parameters / columns.data_parallel[:, None]
    return States(
        weights=2 * parameters,
        gradients=2 * parameters,
        gradients_before=2 * parameters,
        optimiser=(_MASTER_BYTES + _MOMENT_BYTES) * shard,
        update=4 * shard,
        buffers=np.zeros_like(parameters),
        update_buffers=np.minimum(3 * GB, 6 * parameters),
    )
