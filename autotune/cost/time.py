"""Time of an optimiser step by cause, from an analytical model.

A step consists of `micro_batches` passes through the slowest pipeline stage, the pipeline bubble
(filling and draining), and once per step the reduction of gradients and the optimiser.
"""

import dataclasses

import numpy as np

from autotune.cost.columns import Array, Columns, total_of
from autotune.cost.constants import Constants
from autotune.cost.matrix_products import linear_seconds
from autotune.cost.setting import GB, Setting
from autotune.cost.stages import Stages


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
    """Host time of kernel launches that is not hidden."""
    embedding_and_head: Array
    """Output matrix and loss, if they are on the slowest stage."""
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
    setting: Setting,
    constants: Constants,
    memory_share: Array,
) -> StepTime:
    """Step time of every layout; `memory_share` [n] is peak memory / capacity."""
    block = _block(columns, setting, constants)
    head = _head(columns, setting, constants)
    transfer = _stage_transfer(columns, setting, constants)
    per_stage = (
        stages.blocks * block.total[:, None]
        + stages.head * head[:, None]
        + stages.neighbours * transfer[:, None]
    )
    slowest = per_stage.argmax(axis=1)
    all_stages = (
        setting.model.num_hidden_layers * block.total
        + head
        + 2 * (columns.pipeline_parallel - 1) * transfer
    )

    def of_slowest(counts: Array) -> Array:
        return columns.micro_batches * np.take_along_axis(counts, slowest[:, None], 1)[:, 0]

    blocks = of_slowest(stages.blocks)
    parameters = _parameters_of_largest_stage(stages, columns, setting)
    parts = {
        **{cause.name: blocks * getattr(block, cause.name) for cause in dataclasses.fields(block)},
        "embedding_and_head": of_slowest(stages.head) * head,
        "stage_transfers": of_slowest(stages.neighbours) * transfer,
        "pipeline_bubble": all_stages - per_stage.max(axis=1),
        "data_parallel": _data_parallel(columns, parameters, setting, constants),
        "optimiser": _optimiser(columns, parameters, setting, constants),
        "other": np.full(len(columns), constants["step_seconds"]),
    }
    fullness = 1 + (memory_share - 1) / constants["pressure_width"]
    slow_down = constants["pressure"] * np.logaddexp(0, 4 * np.clip(fullness, -10, 10)) / 4
    pressure = slow_down * np.sum(list(parts.values()), axis=0)
    return StepTime(**parts, memory_pressure=pressure)


def _block(columns: Columns, setting: Setting, constants: Constants) -> _Parts:
    """Forward, backward and recomputation of one block.

    FLOPs after Korthikanti et al. 2022 (arXiv 2205.05198), for SwiGLU and grouped-query attention.
    """
    model, tensor = setting.model, columns.tensor_parallel
    tokens = columns.micro_batch_size * model.sequence_length
    hidden = np.full(len(columns), float(model.hidden_size))
    grouped = 2 * model.num_key_value_heads * model.head_size
    inner = model.intermediate_size / tensor
    forward = backward = np.zeros(len(columns))
    for inputs, outputs in (
        (hidden, (hidden + grouped) / tensor),
        (hidden / tensor, hidden),
        (hidden, inner),
        (hidden, inner),
        (inner, hidden),
    ):
        layer_forward, layer_backward = linear_seconds(
            tokens,
            inputs,
            outputs,
            setting.flops_per_second * constants["gemm_efficiency"],
            setting.multiprocessors,
        )
        forward, backward = forward + layer_forward, backward + layer_backward
    attention_forward, attention_backward = _attention(columns, tokens, setting, constants)
    traffic = tokens * _element_wise_bytes(columns, setting, constants)
    element_wise = traffic / setting.memory_bytes_per_second
    collectives = _tensor_parallel(columns, tokens, setting, constants)
    launch = constants["launch_seconds"]
    recomputed = columns.recompute_block
    return _Parts(
        matrix_products=forward * (1 + recomputed) + backward,
        attention=attention_forward * (1 + columns.recompute_attention) + attention_backward,
        # One third of the traffic is in the forward pass.
        element_wise=element_wise * (1 + recomputed / 3),
        tensor_parallel=collectives * (2 + recomputed),
        launch=launch * (3 + recomputed) + constants["checkpoint_seconds"] * recomputed,
    )


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
    flops = 4 * tokens * length * model.hidden_size / columns.tensor_parallel
    forward = flops * np.where(fused, 0.5, 1.0) / (efficiency * setting.flops_per_second)
    backward = forward * np.where(fused, 2.5, 2.0)
    scores = tokens * length * model.num_attention_heads / columns.tensor_parallel
    written = scores * score_traffic * setting.element_scale / setting.memory_bytes_per_second
    return forward + written / 3, backward + written * 2 / 3


def _element_wise_bytes(columns: Columns, setting: Setting, constants: Constants) -> Array:
    """Bytes per token of a block's norms, residuals, rotary embeddings and gates, both passes."""
    model = setting.model
    residual = constants["residual_traffic"] + constants["plain_norm_traffic"] * columns.plain_norm
    sharded = constants["sharded_traffic"] + columns.of_kernel(constants, "sharded_traffic")
    rotated = model.hidden_size + model.num_key_value_heads * model.head_size
    tensor_parallel_traffic = (
        sharded * model.hidden_size
        + constants["rotation_traffic"] * rotated
        + constants["gate_traffic"] * model.intermediate_size
    )
    compiled = np.where(columns.compiled > 0, constants["compiled_traffic"], 1.0)
    residual_stream_traffic = residual * model.hidden_size / columns.sequence_shards
    traffic = residual_stream_traffic + tensor_parallel_traffic / columns.tensor_parallel
    return traffic * compiled * setting.element_scale


def _tensor_parallel(
    columns: Columns, tokens: Array, setting: Setting, constants: Constants
) -> Array:
    """Time of the two all-reduces of a block's forward pass (the backward pass has two more).

    A ring all-reduce over t ranks moves 2 (t - 1) / t of the tensor. Sequence parallelism does
    all-gathers and reduce-scatters instead, of the same volume.
    """
    size = columns.tensor_parallel
    volume = 2 * (size - 1) / size * tokens * setting.model.hidden_size * setting.element_bytes
    speed = _tensor_parallel_speed(columns, setting, constants)
    relative_time = np.where(
        columns.sequence_shards > 1, constants["sequence_parallel_traffic"], 1.0
    )
    latency = constants["link_latency_seconds"] * (size > 1)
    return 2 * (volume / (speed * GB) * relative_time + latency)


def _head(columns: Columns, setting: Setting, constants: Constants) -> Array:
    """Time of output matrix, loss and its collectives, for one micro-batch, both passes."""
    model, size = setting.model, columns.tensor_parallel
    tokens = columns.micro_batch_size * model.sequence_length
    hidden = np.full(len(columns), float(model.hidden_size))
    forward, backward = linear_seconds(
        tokens,
        hidden,
        model.vocab_size / size,
        setting.flops_per_second * constants["gemm_efficiency"],
        setting.multiprocessors,
    )
    logits = tokens * model.vocab_size
    loss = constants["loss_traffic"] * logits / size * setting.element_scale
    gathered = (size - 1) / size * logits * setting.element_bytes
    return (
        forward
        + backward
        + loss / setting.memory_bytes_per_second
        + gathered / (_tensor_parallel_speed(columns, setting, constants) * GB)
    )


def _tensor_parallel_speed(columns: Columns, setting: Setting, constants: Constants) -> Array:
    """Bandwidth of a tensor-parallel collective in GB/s: within a node, or between nodes."""
    return np.where(
        columns.tensor_parallel <= setting.devices_per_node,
        constants["link_gb_per_second"],
        constants["network_gb_per_second"],
    )


def _stage_transfer(columns: Columns, setting: Setting, constants: Constants) -> Array:
    """Time to exchange activations and gradients with a neighbouring stage, per micro-batch."""
    model = setting.model
    tokens = columns.micro_batch_size * model.sequence_length
    volume = tokens * model.hidden_size * setting.element_bytes / columns.sequence_shards
    stage_devices = columns.tensor_parallel * columns.data_parallel
    # The ranks of a stage are consecutive: two stages are on one node only where both fit.
    same_node = 2 * stage_devices <= setting.devices_per_node
    speed = np.where(same_node, constants["link_gb_per_second"], constants["stage_gb_per_second"])
    return constants["stage_latency_seconds"] + volume / (speed * GB)


def _data_parallel(
    columns: Columns, parameters: Array, setting: Setting, constants: Constants
) -> Array:
    """Time per step to reduce gradients and to gather weights.

    Volumes per parameter after Rajbhandari et al. 2020 (arXiv 1910.02054), section 7: an all-reduce
    without ZeRO; a reduce-scatter and an all-gather at stage 1 (the same volume); stage 2
    reduce-scatters after every micro-batch; stage 3 also gathers the weights for every forward and
    backward pass.
    """
    size, stage = columns.data_parallel, columns.zero_stage
    per_pass = setting.element_bytes
    per_step = columns.micro_batches * per_pass
    exposed = 1 - constants["overlap"]
    volume = np.select(
        [stage <= 1, stage == 2],
        [2 * per_pass * np.ones(len(columns)), per_pass + per_step * exposed],
        3 * per_step * exposed,
    )
    nodes = np.maximum(size * columns.tensor_parallel / setting.devices_per_node, 1)
    network = (
        constants["network_gb_per_second"]
        * (columns.tensor_parallel / 2) ** -constants["network_tensor_exponent"]
        * (nodes / 8) ** -constants["network_nodes_exponent"]
        * (setting.devices / 128) ** -constants["network_devices_exponent"]
    )
    link = constants["link_gb_per_second"]
    speed = np.where(nodes > 1, np.minimum(network, link), link)
    return (size - 1) / size * volume * parameters / (speed * GB)


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
