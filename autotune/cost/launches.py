"""What launching kernels costs: the device starts each of them, and at times waits for the host.

The host launches kernels ahead of the device. Its time shows only where it is the slower of the
two, as with small models and micro-batches; what the device needs to start a kernel always shows.
"""

import numpy as np

from autotune.cost.columns import Array, Columns
from autotune.cost.constants import Constants

# The maximum of both is smooth over this share of the host's time: the kernels of a pass differ in
# size, so that the device waits for some of them before it is faster on the whole.
_WIDTH = 0.2


def launch_seconds(
    columns: Columns, forward: Array, backward: Array, constants: Constants
) -> tuple[Array, Array]:
    """Time [n] that launches add to a block's forward and backward pass, whose kernels and
    collectives take `forward` and `backward` seconds. Backward are twice as many."""
    launched = np.where(columns.compiled > 0, constants["compiled_launches"], 1.0)
    starts, host = launched * constants["launch_seconds"], launched * constants["host_seconds"]
    return (
        starts + _waiting(host, forward + starts),
        2 * starts + _waiting(2 * host, backward + 2 * starts),
    )


def _waiting(host: Array, device: Array) -> Array:
    """How much longer than `device` the longer of both takes [n]."""
    width = _WIDTH * host
    longer = np.divide(host - device, width, out=np.zeros_like(width), where=width > 0)
    waiting: Array = width * np.logaddexp(0.0, longer)
    return waiting
