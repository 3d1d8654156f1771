"""Peak memory of a layout's worst rank, and what it is made of."""

import dataclasses

import numpy as np

from autotune.cost.columns import Array, Columns, total_of
from autotune.cost.constants import Constants
from autotune.cost.setting import GIB, Setting
from autotune.cost.stages import Stages
from autotune.cost.states import StatesOf


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PeakMemory:
    """GiB on the worst rank by cause, each [n]; they add up to the peak."""

    weights: Array
    gradients: Array
    optimiser: Array
    """fp32 weights and moments, and what the update needs for a moment."""
    activations: Array
    """What the backward passes of the micro-batches in flight need; fragmentation included."""
    logits: Array
    """Of the micro-batch in the loss."""
    buffers: Array
    """Communication buckets."""
    context: Array
    """Libraries, communicators and the device's own."""

    @property
    def total(self) -> Array:
        """The peak."""
        return total_of(self)


def peak_memory(
    columns: Columns, stages: Stages, setting: Setting, constants: Constants, states_of: StatesOf
) -> PeakMemory:
    """The peak of every layout: the larger of the passes and the update, on the worst stage."""
    parameters = setting.stage_parameters(stages) / columns.tensor_parallel[:, None]
    states = states_of(columns, parameters, setting, constants)
    activations, passing, anew, logits = _activations(columns, stages, setting, constants)
    static = states.weights + states.optimiser
    # At the end of the passes one block is at work. If it was recomputed, then its own gradients
    # (and the embedding's, on the first stage) only come as what was made anew goes.
    matrix = setting.model.vocab_size * setting.model.hidden_size
    own = setting.model.layer_parameters * (stages.blocks > 0) + stages.embedding * matrix
    to_come = states.gradients * own / setting.stage_parameters(stages)
    gradients_at_end = states.gradients - np.minimum(anew, to_come)
    gradients = np.maximum(states.gradients_before, gradients_at_end - activations - logits)
    activations = activations + passing + anew
    passes = static + gradients + states.buffers + activations + logits
    update = static + states.gradients + states.update + states.update_buffers
    worst = np.maximum(passes, update).argmax(axis=1)[:, None]
    in_update = np.take_along_axis(update > passes, worst, 1)[:, 0]

    def of_worst(in_passes: Array, while_updating: Array) -> Array:
        chosen = np.where(
            in_update,
            np.take_along_axis(while_updating, worst, 1)[:, 0],
            np.take_along_axis(in_passes, worst, 1)[:, 0],
        )
        return chosen / GIB

    none = np.zeros_like(activations)
    staged = (columns.pipeline_parallel > 1).astype(float)
    return PeakMemory(
        weights=of_worst(states.weights, states.weights),
        gradients=of_worst(gradients, states.gradients),
        optimiser=of_worst(states.optimiser, states.optimiser + states.update),
        activations=of_worst(activations, none),
        logits=of_worst(logits, none),
        buffers=of_worst(states.buffers, states.update_buffers),
        context=constants["context_gib"] + constants["pipeline_context_gib"] * staged,
    )


def block_activation_bytes(
    columns: Columns, setting: Setting, constants: Constants
) -> tuple[Array, Array]:
    """Bytes that one block keeps of one micro-batch [n]: all but the scores, and the scores.

    Tensors of a tensor-parallel region after Korthikanti et al. 2022 (arXiv 2205.05198), section
    4.2, for SwiGLU, rotary embeddings and grouped-query attention: queries and keys, values, the
    attention's output and its log-sum-exp (fp32); gate and up. Some trainers also keep queries and
    keys before their rotation, and the activated gate and its product with up. Outside: residuals
    and norms, and the inputs of the two regions, which stay whole with sequence parallelism.
    """
    model, size = setting.model, columns.tensor_parallel
    tokens = columns.micro_batch_size * model.sequence_length
    hidden, grouped = model.hidden_size, model.num_key_value_heads * model.head_size
    sharded = (
        constants["rotated_activations"] * (hidden + grouped)
        + grouped
        + hidden
        + constants["gate_activations"] * model.intermediate_size
    )
    norms = constants["plain_norm_activations"] * columns.plain_norm
    residual = constants["residual_activations"] + norms
    tensors = (
        2 * hidden
        + residual * hidden / columns.sequence_shards
        + constants["sharded_activations"] * sharded / size
    )
    kept = tokens * (tensors * setting.element_bytes + 4 * model.num_attention_heads / size)
    scores = tokens * model.sequence_length * model.num_attention_heads / size
    score_bytes = columns.of_kernel(constants, "score_bytes") * setting.element_scale
    return kept, scores * score_bytes


def _activations(
    columns: Columns, stages: Stages, setting: Setting, constants: Constants
) -> tuple[Array, Array, Array, Array]:
    """Activations, what the block at work needs for a moment, what of it was recomputed, and logits
    of each stage at the worst moment, in bytes [n, s].

    A recomputed block keeps its input for every micro-batch in flight, and the whole block only
    while its backward pass runs. What that pass needs for a moment takes the place of the logits,
    which are gone by then, but not of the gradients that the loss made. A recomputed block's
    scores, where a kernel writes them, come on top (so the recorded runs say).
    """
    model = setting.model
    tokens = columns.micro_batch_size * model.sequence_length
    kept, scores = block_activation_bytes(columns, setting, constants)
    inputs = tokens * model.hidden_size * setting.element_bytes / columns.sequence_shards
    per_logit = (
        constants["logit_bytes"] / columns.tensor_parallel
        + constants["replicated_logit_bytes"]
        + constants["gathered_logit_bytes"] * (columns.tensor_parallel > 1)
    )
    logits_at_once = tokens * model.vocab_size
    if constants["logits_at_a_time"]:
        most = constants["logits_at_a_time"] * columns.tensor_parallel
        logits_at_once = np.minimum(logits_at_once, most)
    gone = (logits_at_once * per_logit * setting.element_scale)[:, None] * stages.head
    stays = (
        constants["loss_gradients"]
        * setting.element_bytes
        * (
            2 * tokens * model.hidden_size
            + model.vocab_size * model.hidden_size / columns.tensor_parallel
        )
    )
    logits = gone + stays[:, None] * stages.head
    held = stages.blocks * stages.in_flight
    recomputed = columns.recompute_block[:, None] > 0
    attention_recomputed = columns.recompute_attention[:, None] > 0
    once = np.where(attention_recomputed & (stages.blocks > 0), scores[:, None], 0)
    whole = held * (kept + np.where(columns.recompute_attention > 0, 0, scores))[:, None]
    inputs_only = held * inputs[:, None]
    # Its input is held anyway: a stage's only block takes no more than if it were kept.
    anew = np.minimum(kept[:, None], held * (kept - inputs)[:, None]) * recomputed
    passing = constants["working_set"] * kept[:, None] * (stages.blocks > 0)
    anew = np.maximum(passing + anew - gone, 0) - np.maximum(passing - gone, 0)
    passing = np.maximum(passing - gone, 0)
    lost = 1 + constants["fragmentation"]
    activations = np.where(recomputed, inputs_only, whole) + once
    return activations * lost, passing * lost, anew * lost, logits * lost
