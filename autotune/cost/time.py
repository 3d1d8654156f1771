"""Time of an optimiser step by cause, from an analytical model.

A step consists of `micro_batches` passes through one pipeline stage, most often the slowest, the
pipeline bubble (filling and draining), and once per step the reduction of gradients and the
optimiser.
"""

import dataclasses

import numpy as np

from autotune.cost.blocks import Product, products_of, widths_of
from autotune.cost.columns import Array, Columns, total_of
from autotune.cost.communication import (
    Passes,
    data_parallel_seconds,
    stage_transfers,
    tensor_parallel_seconds,
    tensor_parallel_speed,
)
from autotune.cost.constants import Constants
from autotune.cost.launches import launch_seconds
from autotune.cost.matrix_products import products_seconds
from autotune.cost.schedule import longest_chain
from autotune.cost.setting import Setting
from autotune.cost.stages import Stages
from autotune.cost.timed_stages import TimedStages
from autotune.cost.traffic import activation_bytes, recomputed_share


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds per step by cause, each [n]; the sum is the step time."""

    matrix_products: Array
    """Matrix products of the blocks. This and the next four include recomputation."""
    attention: Array
    element_wise: Array
    tensor_parallel: Array
    """Tensor-parallel collectives within the blocks."""
    launch: Array
    """Starting kernels, and waiting for the host to launch them."""
    embedding_and_head: Array
    """Output matrix and loss, if they are on the stage whose passes are counted."""
    stage_transfers: Array
    """Activations and gradients between pipeline stages."""
    pipeline_bubble: Array
    """Filling and draining the pipeline."""
    data_parallel: Array
    """Reduction of gradients and gathering of weights."""
    optimiser: Array
    other: Array
    """Constant time of every step."""
    memory_pressure: Array
    """Slow-down by the allocator when memory is nearly full."""

    @property
    def total(self) -> Array:
        """Step time [n]."""
        return total_of(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Seconds of one micro-batch through one block, by cause, each [n]."""

    matrix_products: Array
    attention: Array
    element_wise: Array
    tensor_parallel: Array
    launch: Array

    @property
    def total(self) -> Array:
        return total_of(self)


def step_time(
    columns: Columns,
    stages: Stages,
    timed: TimedStages,
    setting: Setting,
    constants: Constants,
    memory_share: Array,
) -> StepTime:
    """Step time of every layout; `memory_share` [n] is peak memory / capacity."""
    time = block_time(columns, setting, constants)
    block, forward = time.parts, time.forward
    head_forward, head_backward = head_time(columns, setting, constants)
    transfers = stage_transfers(columns, setting, constants)
    in_forward = forward + time.forward_collectives
    chain = longest_chain(
        columns,
        timed,
        Passes(forward=in_forward, backward=block.total - in_forward),
        Passes(forward=head_forward, backward=head_backward),
        transfers,
    )

    def of_chain(counts: Array) -> Array:
        found: Array = np.take_along_axis(counts, chain.stage[None], 0)[0]
        return columns.micro_batches * found

    blocks = of_chain(timed.blocks)
    # Without collectives on the links: data-parallel communication waits for those.
    computing = block.total - block.tensor_parallel
    per_micro_batch = blocks / columns.micro_batches
    passes = Passes(
        forward=per_micro_batch * forward, backward=per_micro_batch * (computing - forward)
    )
    parameters = _parameters_of_largest_stage(stages, columns, setting)
    parts = {
        **{cause.name: blocks * getattr(block, cause.name) for cause in dataclasses.fields(block)},
        "embedding_and_head": of_chain(timed.head) * (head_forward + head_backward),
        "stage_transfers": of_chain(timed.neighbours) * transfers.exchange,
        "pipeline_bubble": chain.bubble,
        "data_parallel": data_parallel_seconds(columns, parameters, passes, setting, constants),
        "optimiser": _optimiser(columns, parameters, setting, constants),
        "other": np.full(len(columns), constants["step_seconds"]),
    }
    fullness = 1 + (memory_share - 1) / constants["pressure_width"]
    slow_down = constants["pressure"] * np.logaddexp(0, 4 * np.clip(fullness, -10, 10)) / 4
    pressure = slow_down * np.sum(list(parts.values()), axis=0)
    return StepTime(**parts, memory_pressure=pressure)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockTime:
    """Seconds of one micro-batch through one block; arrays [n]."""

    parts: _Parts
    """Both passes and recomputation, by cause."""
    forward: Array
    """The forward pass without collectives."""
    forward_collectives: Array
    """Tensor-parallel collectives of the forward pass that are not hidden."""


def block_time(columns: Columns, setting: Setting, constants: Constants) -> BlockTime:
    """Forward, backward and recomputation of one block.

    FLOPs after Korthikanti et al. 2022 (arXiv 2205.05198).
    """
    tokens = columns.micro_batch_size * setting.model.sequence_length
    products = products_of(setting.model)
    forward, backward = products_seconds(products, columns, setting, constants)
    attention_forward, attention_backward = _attention(columns, tokens, setting, constants)
    traffic = tokens * _element_wise_bytes(columns, setting, constants)
    element_wise = traffic / setting.memory_bytes_per_second
    collectives = tensor_parallel_seconds(columns, tokens, setting, constants)
    recomputed = columns.recompute_block
    in_forward, in_backward = _exposed_collectives(
        columns, collectives, forward, backward, setting, constants
    )
    # One third of the element-wise traffic is in the forward pass.
    kernels = forward + attention_forward + element_wise / 3
    kernels_backward = backward + attention_backward + element_wise * 2 / 3
    launch, launch_backward = launch_seconds(
        columns, kernels + in_forward, kernels_backward + in_backward, constants
    )
    parts = _Parts(
        matrix_products=forward * (1 + recomputed) + backward,
        attention=attention_forward * (1 + columns.recompute_attention) + attention_backward,
        element_wise=element_wise * (1 + recomputed / 3),
        tensor_parallel=in_forward * (1 + recomputed_share(columns, setting)) + in_backward,
        launch=launch * (1 + recomputed)
        + launch_backward
        + constants["checkpoint_seconds"] * recomputed,
    )
    return BlockTime(
        parts=parts,
        forward=kernels + launch,
        forward_collectives=in_forward,
    )


def _exposed_collectives(
    columns: Columns,
    collectives: Array,
    forward: Array,
    backward: Array,
    setting: Setting,
    constants: Constants,
) -> tuple[Array, Array]:
    """Tensor-parallel communication of a block that matrix products do not hide: in the forward
    pass, and in the backward pass without recomputation.

    `collectives` are those of one pass. In the backward pass sequence parallelism gathers inputs
    again that were not kept, while the gradients of the inputs are computed, half of the pass. The
    other half, the gradients of the weights, needs no other rank. What sequence parallelism gathers
    of gradients is needed at once, unless a collective runs piece by piece beside its own product.
    """
    hides, share = setting.trainer.hides_tensor_parallel, constants["overlap"]
    sharded, half = columns.sequence_shards > 1, collectives / 2
    again = np.where(sharded & (not setting.trainer.keeps_gathered_inputs), half, 0.0)
    beside = np.where(sharded, half, collectives) if hides == "backward" else collectives
    in_forward = share * np.minimum(collectives, forward) * (hides == "passes")
    hidden = np.minimum(beside, backward / 2) + np.minimum(again, backward / 2)
    in_backward = collectives + again - share * hidden * (hides != "never")
    return collectives - in_forward, in_backward


def _attention(
    columns: Columns, tokens: Array, setting: Setting, constants: Constants
) -> tuple[Array, Array]:
    """Forward and backward time of scores, softmax and weighted values.

    Fused kernels compute the causal half only, and their backward pass is five products to the
    forward pass's two (Dao 2023, arXiv 2307.08691). Others compute and write all scores.
    """
    model = setting.model
    efficiency = columns.of_kernel(constants, "efficiency")
    score_traffic = columns.of_kernel(constants, "score_traffic")
    fused = score_traffic == 0
    length = model.sequence_length
    efficiency = efficiency * length / (length + columns.of_kernel(constants, "half_length"))
    # Without fused kernels, rows that are not aligned to 16 bytes cannot use tensor cores.
    if model.head_size % 8 and setting.multiprocessors > 1:
        efficiency = efficiency * np.where(fused, 1.0, constants["unaligned_speed"])
    # Fused kernels also skip what is outside a sliding window.
    keys = np.where(fused, model.scores_per_token / 2, length)
    flops = 2 * tokens * keys * (model.query_size + model.attended_size) / columns.tensor_parallel
    forward = flops / (efficiency * setting.flops_per_second)
    backward = forward * np.where(fused, 2.5, 2.0)
    scores = tokens * length * model.num_attention_heads / columns.tensor_parallel
    written = scores * score_traffic * setting.element_scale / setting.memory_bytes_per_second
    return forward + written / 3, backward + written * 2 / 3


def _element_wise_bytes(columns: Columns, setting: Setting, constants: Constants) -> Array:
    """Bytes per token of a block's norms, residuals, rotary embeddings and gates, both passes."""
    model, widths = setting.model, widths_of(setting.model)
    residual = constants["residual_traffic"] + constants["plain_norm_traffic"] * columns.plain_norm
    sharded = constants["sharded_traffic"] + columns.of_kernel(constants, "sharded_traffic")
    activation = constants["gate_traffic" if model.gated_feed_forward else "activation_traffic"]
    rotated = (model.query_size + model.key_size) * (model.positions == "rotary")
    tensor_parallel_traffic = (
        sharded * model.attended_size
        + constants["rotation_traffic"] * rotated
        + constants["norm_traffic"] * widths.normed
        + activation * widths.feed_forward
    )
    compiled = np.where(columns.compiled > 0, constants["compiled_traffic"], 1.0)
    residual_stream = (
        residual
        + constants["norm_traffic"] * widths.norms
        + constants["dispatch_traffic"] * widths.dispatched
    )
    residual_stream_traffic = residual_stream * model.hidden_size / columns.sequence_shards
    traffic = residual_stream_traffic + tensor_parallel_traffic / columns.tensor_parallel
    return traffic * compiled * setting.element_scale


def head_time(columns: Columns, setting: Setting, constants: Constants) -> tuple[Array, Array]:
    """Time of output matrix, loss and its collectives for one micro-batch: forward and backward.

    One third of the loss's traffic is counted in the forward pass."""
    model, size = setting.model, columns.tensor_parallel
    tokens = columns.micro_batch_size * model.sequence_length
    matrix = Product(inputs=model.hidden_size, outputs=model.vocab_size, sharded="outputs")
    forward, backward = products_seconds([matrix], columns, setting, constants)
    logits = tokens * model.vocab_size
    loss = constants["loss_traffic"] * logits / size * setting.element_scale
    traffic = loss / setting.memory_bytes_per_second
    speed = tensor_parallel_speed(columns, setting, constants)
    # Whole logits on every rank; or what enters the vocabulary's shards, as a block's regions.
    gathered = logits * setting.element_bytes * setting.trainer.gathers_logits
    entering = activation_bytes(columns, setting) * (not setting.trainer.gathers_logits)
    sharded = columns.sequence_shards > 1
    in_forward = (gathered + entering * sharded) * (size - 1) / size / speed
    in_backward = entering * np.where(sharded, 1, 2) * (size - 1) / size / speed
    return forward + traffic / 3 + in_forward, backward + traffic * 2 / 3 + in_backward


def _optimiser(
    columns: Columns, parameters: Array, setting: Setting, constants: Constants
) -> Array:
    """Memory traffic time of AdamW on the rank's optimiser shard, of the gradients of all its
    parameters, and of gradient accumulation after the first micro-batch."""
    shards = np.where(columns.zero_stage > 0, columns.data_parallel, 1)
    accumulation = (
        constants["accumulation_traffic"] * setting.element_scale * (columns.micro_batches - 1)
    )
    traffic = constants["optimizer_traffic"] / shards + constants["gradient_traffic"] + accumulation
    return parameters * traffic / setting.memory_bytes_per_second


def _parameters_of_largest_stage(stages: Stages, columns: Columns, setting: Setting) -> Array:
    per_stage = setting.stage_parameters(stages)
    largest: Array = per_stage.max(axis=1) / columns.tensor_parallel
    return largest
