"""Time of communication: tensor-parallel collectives, stage transfers, data-parallel collectives.

A ring collective over n ranks moves (n - 1) / n of the tensor through every rank for a
reduce-scatter or an all-gather, and twice that for an all-reduce. Within a link domain (a node, or
a rack that is joined by links) the links carry it. Between domains the network cards do: the groups
that have ranks in a node share its cards, in proportion to their ranks.
"""

import dataclasses

import numpy as np

from autotune.cost.columns import Array, Columns
from autotune.cost.constants import Constants
from autotune.cost.gathering import gathered_again
from autotune.cost.setting import Setting

START_SECONDS = 8.4e-6
"""Start of a collective (NCCL's tuning model, src/graph/tuning.cc, ring, simple protocol)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Computation that can hide communication: seconds of one micro-batch on a stage, each [n]."""

    forward: Array
    backward: Array
    """Recomputation included."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """Seconds of what neighbouring stages send each other for a micro-batch, each [n]."""

    message: Array
    """Activations or gradients, one way."""
    exchange: Array
    """Activations one way and gradients the other."""


def tensor_parallel_seconds(
    columns: Columns, tokens: Array, setting: Setting, constants: Constants
) -> Array:
    """Time of the two all-reduces of a block's pass.

    Sequence parallelism does all-gathers and reduce-scatters instead, of the same volume.
    """
    size = columns.tensor_parallel
    volume = 2 * (size - 1) / size * tokens * setting.model.hidden_size * setting.element_bytes
    relative_time = np.where(
        columns.sequence_shards > 1, constants["sequence_parallel_traffic"], 1.0
    )
    latency = constants["link_latency_seconds"] * (size > 1)
    speed = tensor_parallel_speed(columns, setting, constants)
    return 2 * (volume / speed * relative_time + latency)


def tensor_parallel_speed(columns: Columns, setting: Setting, constants: Constants) -> Array:
    """Bandwidth of a tensor-parallel collective in B/s [n]."""
    return _ring_speed(columns.tensor_parallel, np.ones(len(columns)), setting, constants)


def stage_transfers(columns: Columns, setting: Setting, constants: Constants) -> Transfers:
    """Time to exchange activations and gradients with a neighbouring stage, per micro-batch.

    DeepSpeed's stages receive before they send, and wait for both; others do both at once.
    Some trainers send each tensor-parallel rank's part only and gather the parts within the node
    (Narayanan et al. 2021, arXiv 2104.04473, section 4.1).
    """
    size = columns.tensor_parallel
    tokens = columns.micro_batch_size * setting.model.sequence_length
    volume = tokens * setting.model.hidden_size * setting.element_bytes / columns.sequence_shards
    # The ranks of a stage are consecutive. Where some stages fit into a domain, those at its edges
    # have one neighbour within and one beyond.
    stage, domain = size * columns.data_parallel, setting.link_domain
    whole = stage * columns.pipeline_parallel <= domain
    beyond = np.select([whole, 2 * stage <= domain], [0.0, 0.5], 1.0)
    link = setting.link_bytes_per_second * constants["link_efficiency"]
    card = setting.node_bytes_per_second / setting.devices_per_node * constants["stage_efficiency"]
    parts = np.where(
        (columns.sequence_shards == 1) & setting.trainer.partitions_transfers, size, 1.0
    )
    gathering = np.where(parts > 1, (size - 1) / size * volume / link, 0.0)
    seconds = beyond * (volume / parts / card + gathering) + (1 - beyond) * volume / link
    latency = constants["stage_latency_seconds"]
    ways = 2 if setting.trainer.deepspeed_engine else 1
    return Transfers(message=latency / 2 + seconds, exchange=latency + ways * seconds)


def data_parallel_seconds(
    columns: Columns,
    parameters: Array,
    passes: Passes,
    setting: Setting,
    constants: Constants,
) -> Array:
    """Time per step to reduce gradients and gather weights that computation does not hide.

    `parameters` [n] are those of a rank. What is sent when, by ZeRO stage, is the trainer's
    (`autotune.cost.trainers.Sharding`); volumes after Rajbhandari et al. 2020 (arXiv 1910.02054),
    section 7.
    """
    trainer = setting.trainer
    every_micro_batch, once = columns.micro_batches, np.ones(len(columns))
    gathers = {
        "never": (0 * once, 0 * once),
        "update": (once, 0 * once),
        "forward": (every_micro_batch, 0 * once),
        "passes": (every_micro_batch, every_micro_batch),
    }
    messages = _messages(columns, parameters, setting, constants)
    element_bytes = trainer.gradient_bytes or setting.element_bytes
    gradients = _collective_seconds(
        columns, parameters * element_bytes, messages, setting, constants
    )
    weights = _collective_seconds(
        columns, parameters * setting.element_bytes, messages, setting, constants
    )

    # What was kept from the forward pass is not gathered for the backward pass.
    again = gathered_again(columns, parameters[:, None], setting)[:, 0] / parameters

    can_hide = (columns.pipeline_parallel == 1) | trainer.hides_with_stages

    def exposed(traffic: Array, hiding: Array, hides: bool) -> Array:
        """Communication time that is not hidden: communication and computation slow each other
        down, and nothing is left to hide the last message."""
        hidden = np.minimum(traffic * (1 - 1 / messages), hiding)
        left: Array = traffic - constants["overlap"] * hidden * (can_hide & hides)
        return left

    seconds = np.zeros(len(columns))
    for stage, sharding in trainer.sharding.items():
        forward, backward = gathers[sharding.gathered]
        reduction = gradients * (2 if sharding.reduction == "all_reduce" else 1)
        # Weights that are gathered for the backward pass share the network with gradients.
        in_backward = reduction + weights * again * (backward > 0)
        reductions = every_micro_batch if sharding.reduced == "micro_batch" else once
        total = reductions * exposed(in_backward, passes.backward, sharding.hides_reduction)
        total = total + forward * exposed(weights, passes.forward, sharding.hides_gathering)
        seconds = np.where(columns.zero_stage == stage, total, seconds)
    return np.where(columns.data_parallel > 1, seconds, 0.0)


def _messages(columns: Columns, parameters: Array, setting: Setting, constants: Constants) -> Array:
    """Number of collectives that one reduction or gathering of all parameters takes."""
    per_message = np.maximum(
        constants["message_parameters"] or setting.model.layer_parameters / columns.tensor_parallel,
        constants["message_parameters_per_replica"] * columns.data_parallel,
    )
    return np.maximum(parameters / per_message, 1)


def _collective_seconds(
    columns: Columns, size_bytes: Array, messages: Array, setting: Setting, constants: Constants
) -> Array:
    """Time of a reduce-scatter or all-gather of `size_bytes` [n] per rank over its replicas."""
    size, tensor = columns.data_parallel, columns.tensor_parallel
    _, domains = _ring(size, tensor, setting)
    nodes = setting.devices / setting.devices_per_node
    slow_down = np.where(domains > 1, 1 + constants["network_congestion"] * nodes, 1)
    speed = _ring_speed(size, tensor, setting, constants)
    seconds = (size - 1) / size * size_bytes / speed * slow_down
    hops = (domains - 1) * constants["network_hop_seconds"]
    hops = hops + (size - domains) * constants["link_hop_seconds"]
    return seconds + messages * (START_SECONDS + hops)


def _ring(size: Array, stride: Array, setting: Setting) -> tuple[Array, Array]:
    """Ranks in each link domain of a group of `size` ranks, `stride` devices apart, and domains.

    Groups begin at multiples of the devices that they span. Where those do not fit domains evenly,
    some group has as few ranks in a domain as the common divisor says; it is the slowest.
    """
    spanned = (size * stride).astype(np.int64)
    fits = setting.devices <= setting.link_domain
    even = spanned if fits else np.gcd(spanned, setting.link_domain)
    in_domain = np.clip(even // stride, 1, size)
    return in_domain, np.ceil(size / in_domain)


def _ring_speed(size: Array, stride: Array, setting: Setting, constants: Constants) -> Array:
    """Bandwidth in B/s of a ring over `size` ranks that are `stride` devices apart."""
    in_domain, domains = _ring(size, stride, setting)
    link = setting.link_bytes_per_second * constants["link_efficiency"]
    share = in_domain / setting.devices_per_node
    network = setting.node_bytes_per_second * share * constants["network_efficiency"]
    return np.where(domains > 1, np.minimum(network, link), link)
