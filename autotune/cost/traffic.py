"""Bytes that a rank exchanges with others in a step, by group.

They are those of whole tensors: of an all-gather's output and of a reduce-scatter's input, on every
rank. An all-reduce counts twice, since it does the work of both.
"""

import dataclasses

import numpy as np

from autotune.cost.columns import Array, Columns
from autotune.cost.gathering import gathered_again
from autotune.cost.setting import Setting
from autotune.cost.stages import Stages


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes per rank and step of some stages, each [n, s]."""

    tensor_parallel: Array
    stage_transfers: Array
    """Sent and received."""
    data_parallel: Array


def traffic_of(columns: Columns, stages: Stages, setting: Setting) -> Traffic:
    """What the collectives of the cost model move."""
    per_block = _tensor_parallel_units(columns, setting)[:, None]
    # The sum of the embedding's parts, and of the gradients of the head's input.
    ends = 2 * (stages.embedding + stages.head)
    unit = activation_bytes(columns, setting) * columns.micro_batches
    has_peers = (columns.tensor_parallel > 1)[:, None]
    message = unit / columns.sequence_shards
    parameters = setting.stage_parameters(stages) / columns.tensor_parallel[:, None]
    return Traffic(
        tensor_parallel=unit[:, None] * (stages.blocks * per_block + ends) * has_peers,
        stage_transfers=2 * stages.neighbours * message[:, None],
        data_parallel=_data_parallel(columns, parameters, setting),
    )


def activation_bytes(columns: Columns, setting: Setting) -> Array:
    """Bytes [n] of a micro-batch's hidden states, of all tensor-parallel ranks together."""
    tokens = columns.micro_batch_size * setting.model.sequence_length
    size: Array = tokens * setting.model.hidden_size * setting.element_bytes
    return size


def _tensor_parallel_units(columns: Columns, setting: Setting) -> Array:
    """Hidden states [n] that a block exchanges for a micro-batch: two sums forward and two
    backward, or a gathering and a scattering sum for each with sequence parallelism; what is
    gathered again for the backward pass; and what recomputation repeats."""
    sharded = columns.sequence_shards > 1
    again = 2 * sharded * (not setting.trainer.keeps_gathered_inputs)
    units: Array = 8 + again + 4 * recomputed_share(columns, setting)
    return units


def recomputed_share(columns: Columns, setting: Setting) -> Array:
    """Share [n] of a forward pass's tensor-parallel collectives that recomputation repeats."""
    sums = setting.trainer.recomputed_sums / 2
    share = np.where(columns.sequence_shards > 1, (1 + sums) / 2, sums)
    repeated: Array = columns.recompute_block * share
    return repeated


def _data_parallel(columns: Columns, parameters: Array, setting: Setting) -> Array:
    """Gradients and weights that the replicas exchange; `parameters` [n, s] are a rank's."""
    trainer = setting.trainer
    moved = np.zeros_like(parameters)
    every, once = columns.micro_batches[:, None], 1.0
    for stage, sharding in trainer.sharding.items():
        gradients = parameters * (trainer.gradient_bytes or setting.element_bytes)
        gradients = gradients * (2 if sharding.reduction == "all_reduce" else 1)
        weights = parameters * setting.element_bytes
        again = gathered_again(columns, parameters, setting) * setting.element_bytes
        gathered = {
            "never": np.zeros_like(weights),
            "update": weights,
            "forward": every * weights,
            "passes": every * (weights + again),
        }[sharding.gathered]
        reductions = every if sharding.reduced == "micro_batch" else once
        of_stage = reductions * gradients + gathered
        moved = np.where(columns.zero_stage[:, None] == stage, of_stage, moved)
    return np.where(columns.data_parallel[:, None] > 1, moved, 0.0)
