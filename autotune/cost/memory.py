"""Peak memory of the rank that needs most, broken down by cause."""

import dataclasses

import numpy as np

from autotune.cost.blocks import widths_of
from autotune.cost.columns import Array, Columns, total_of
from autotune.cost.constants import Constants
from autotune.cost.setting import GIB, Setting
from autotune.cost.stages import Stages
from autotune.cost.states import STATES


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PeakMemory:
    """GiB by cause on the rank that needs most, each [n]; the sum is the peak."""

    weights: Array
    gradients: Array
    optimiser: Array
    """fp32 master weights and moments, and temporary memory of the update."""
    activations: Array
    """Activations in flight and the backward pass's working set, fragmentation included."""
    logits: Array
    """Logits and their gradients, of one micro-batch."""
    buffers: Array
    """Communication buckets and gathered weights."""
    context: Array
    """Device context, libraries and communicators."""

    @property
    def total(self) -> Array:
        """Peak memory [n]."""
        return total_of(self)


def peak_memory(
    columns: Columns, stages: Stages, setting: Setting, constants: Constants
) -> PeakMemory:
    """Peak memory: the larger of forward and backward passes and the update, on the worst stage."""
    parameters = setting.stage_parameters(stages) / columns.tensor_parallel[:, None]
    states = STATES[setting.trainer.states](columns, parameters, setting, constants)
    activations, temporary, recomputed, logits = _activations(columns, stages, setting, constants)
    static = states.weights + states.optimiser
    # Gradients are allocated while activations are freed: the passes end with all gradients and the
    # working set of one block. If that block was recomputed, its own gradients (and on the first
    # stage the embedding's) are only allocated as the recomputed activations are freed.
    matrix = setting.model.vocab_size * setting.model.hidden_size
    last_block = setting.model.layer_parameters * (stages.blocks > 0) + stages.embedding * matrix
    not_yet = states.gradients * last_block / setting.stage_parameters(stages)
    gradients_at_end = states.gradients - np.minimum(recomputed, not_yet)
    gradients = np.maximum(states.gradients_before, gradients_at_end - activations - logits)
    activations = activations + temporary + recomputed
    passes = static + gradients + states.buffers + activations + logits
    update = static + states.gradients_in_update + states.update + states.update_buffers
    worst = np.maximum(passes, update).argmax(axis=1)[:, None]
    in_update = np.take_along_axis(update > passes, worst, 1)[:, 0]

    def of_worst(in_passes: Array, while_updating: Array) -> Array:
        peak_bytes = np.where(
            in_update,
            np.take_along_axis(while_updating, worst, 1)[:, 0],
            np.take_along_axis(in_passes, worst, 1)[:, 0],
        )
        return peak_bytes / GIB

    zeros = np.zeros_like(activations)
    has_stages = (columns.pipeline_parallel > 1).astype(float)
    return PeakMemory(
        weights=of_worst(states.weights, states.weights),
        gradients=of_worst(gradients, states.gradients_in_update),
        optimiser=of_worst(states.optimiser, states.optimiser + states.update),
        activations=of_worst(activations, zeros),
        logits=of_worst(logits, zeros),
        buffers=of_worst(states.buffers, states.update_buffers),
        context=constants["context_gib"] + constants["pipeline_context_gib"] * has_stages,
    )


def block_activation_bytes(
    columns: Columns, setting: Setting, constants: Constants
) -> tuple[Array, Array]:
    """Bytes that one block keeps for one micro-batch [n]: all but the attention scores, and those.

    Tensors of a tensor-parallel region after Korthikanti et al. 2022 (arXiv 2205.05198), section
    4.2, for SwiGLU, rotary embeddings and grouped-query attention: queries and keys, values, the
    attention's output and its log-sum-exp (fp32); gate and up. Some trainers also keep queries and
    keys before their rotation, and the activated gate and its product with up. Outside: residuals
    and norms, and the inputs of the two regions, of which some trainers keep only the shard with
    sequence parallelism.
    """
    model, size = setting.model, columns.tensor_parallel
    tokens, widths = columns.micro_batch_size * model.sequence_length, widths_of(model)
    # Without a gate there is one tensor for two: the activation's input, and its result.
    gate = constants["gate_activations"] / (1 if model.gated_feed_forward else 2)
    hidden, heads = model.hidden_size, model.query_size + model.key_size
    rotated = constants["rotated_activations"] if model.positions == "rotary" else 1
    sharded = (
        rotated * heads
        + widths.normed
        + model.value_size
        + model.attended_size
        + gate * widths.feed_forward
    )
    norms = constants["plain_norm_activations"] * columns.plain_norm
    # A norm after attention or feed-forward network keeps its input; experts keep theirs.
    residual = constants["residual_activations"] + norms + widths.norms + widths.dispatched
    input_shards = 1.0 if setting.trainer.keeps_gathered_inputs else columns.sequence_shards
    tensors = (
        2 * hidden / input_shards
        + residual * hidden / columns.sequence_shards
        + widths.latent
        + constants["sharded_activations"] * sharded / size
    )
    kept = tokens * (tensors * setting.element_bytes + 4 * model.num_attention_heads / size)
    scores = tokens * model.sequence_length * model.num_attention_heads / size
    score_bytes = columns.of_kernel(constants, "score_bytes") * setting.element_scale
    return kept, scores * score_bytes


def _activations(
    columns: Columns, stages: Stages, setting: Setting, constants: Constants
) -> tuple[Array, Array, Array, Array]:
    """Bytes [n, s] at the peak: activations that are kept; what one block's backward pass needs
    temporarily; what of the block was recomputed for it; and logits.

    With full checkpointing a block keeps only its input for every micro-batch in flight, and all
    of its activations while its backward pass runs. That working set reuses the memory of the
    logits, which are freed by then, but not that of the loss's gradients. Scores that a kernel
    writes and that are recomputed are added once (inferred from the recorded runs).
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
        limit = constants["logits_at_a_time"] * columns.tensor_parallel
        logits_at_once = np.minimum(logits_at_once, limit)
    freed_logits = (logits_at_once * per_logit * setting.element_scale)[:, None] * stages.head
    loss_gradients = (
        constants["loss_gradients"]
        * setting.element_bytes
        * (
            2 * tokens * model.hidden_size
            + model.vocab_size * model.hidden_size / columns.tensor_parallel
        )
    )
    logits = freed_logits + loss_gradients[:, None] * stages.head
    held = stages.blocks * stages.in_flight
    recomputed = columns.recompute_block[:, None] > 0
    attention_recomputed = columns.recompute_attention[:, None] > 0
    recomputed_scores = np.where(attention_recomputed & (stages.blocks > 0), scores[:, None], 0)
    kept_scores = np.where(columns.recompute_attention > 0, 0, scores)
    all_activations = held * (kept + kept_scores)[:, None]
    inputs_only = held * inputs[:, None]
    # The block's input is already counted, so a stage with one block needs no more than without
    # checkpointing.
    recomputation = np.minimum(kept[:, None], held * (kept - inputs)[:, None]) * recomputed
    temporary = constants["working_set"] * kept[:, None] * (stages.blocks > 0)
    working_set = np.maximum(temporary + recomputation - freed_logits, 0)
    temporary = np.maximum(temporary - freed_logits, 0)
    overhead = 1 + constants["fragmentation"]
    activations = np.where(recomputed, inputs_only, all_activations) + recomputed_scores
    return (
        activations * overhead,
        temporary * overhead,
        (working_set - temporary) * overhead,
        logits * overhead,
    )
