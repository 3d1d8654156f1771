"""Inputs that all layouts of an estimate share: the model, and the hardware's nominal figures."""

import dataclasses

import numpy as np

from autotune.cluster import Cluster
from autotune.cost.columns import Array
from autotune.cost.stages import Stages
from autotune.cost.trainers import Trainer
from autotune.errors import InputError
from autotune.inputs import listed
from autotune.model import Model, Precision

GB = 1e9
GIB = float(2**30)

# Constants in bytes are given for bf16, the precision of the recorded runs.
_BF16_BYTES = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One model in one precision on one cluster, trained by one trainer."""

    model: Model
    trainer: Trainer
    precision: Precision
    devices: int
    devices_per_node: int
    flops_per_second: float
    """Peak of one device in that precision."""
    memory_bytes_per_second: float
    """Bandwidth of one device's memory."""
    multiprocessors: int
    """Units that each compute one tile of a matrix product at a time."""
    capacity_gib: float
    """Nominal memory per device, or the budget per rank."""
    link_bytes_per_second: float
    """Nominal bandwidth of a device's links, in one direction."""
    link_domain: int
    """Devices that such links join."""
    node_bytes_per_second: float
    """Nominal bandwidth of a node's network cards together, in one direction."""

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return 2 if self.precision == "bf16" else 4

    @property
    def element_scale(self) -> float:
        """Bytes of an element relative to bf16; scales the constants in bytes."""
        return self.element_bytes / _BF16_BYTES

    def stage_parameters(self, stages: Stages) -> Array:
        """Parameters of each stage [n, s], before tensor parallelism divides them.

        First and last stage have a copy each of a matrix that both embeddings share.
        """
        matrix = self.model.vocab_size * self.model.hidden_size
        both = stages.embedding + stages.head
        embeddings = (np.minimum(both, 1) if self.model.tie_word_embeddings else both) * matrix
        return stages.blocks * self.model.layer_parameters + embeddings


def setting_of(model: Model, precision: Precision, cluster: Cluster, trainer: Trainer) -> Setting:
    """The setting of a model on a cluster. Raises InputError for unknown figures of the device."""
    device = cluster.device
    required = {
        "peak_bf16_tflops": device.peak_bf16_tflops or device.peak_fp32_tflops,
        "memory_gib": cluster.memory_gib or device.memory_gib,
        "memory_gb_per_second": device.memory_gb_per_second,
        "multiprocessors": device.multiprocessors,
    }
    missing = [name for name, value in required.items() if value is None]
    if missing:
        raise InputError(
            f"device {device.name} is not known well enough to estimate a layout: "
            f"{listed(missing)} of its hardware file must be given, got null"
        )
    peak = device.peak_bf16_tflops if precision == "bf16" else device.peak_fp32_tflops
    peak = peak or required["peak_bf16_tflops"]
    assert peak and device.memory_gb_per_second and device.multiprocessors
    assert required["memory_gib"]
    links = cluster.links
    return Setting(
        model=model,
        trainer=trainer,
        precision=precision,
        devices=cluster.devices,
        devices_per_node=cluster.gpus_per_node,
        flops_per_second=peak * 1e12,
        memory_bytes_per_second=device.memory_gb_per_second * GB,
        multiprocessors=device.multiprocessors,
        capacity_gib=required["memory_gib"],
        link_bytes_per_second=links.link_gb_per_second * GB,
        link_domain=links.link_domain or cluster.gpus_per_node,
        node_bytes_per_second=links.node_gb_per_second(cluster.gpus_per_node) * GB,
    )
