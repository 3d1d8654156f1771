"""Time of matrix products on GPUs, with tile and wave quantization."""

from collections.abc import Iterable

import numpy as np

from autotune.cost.blocks import Product
from autotune.cost.columns import Array, Columns
from autotune.cost.constants import Constants
from autotune.cost.setting import Setting

# Tiles: rows and columns of the output that one multiprocessor computes at a time, and the speed of
# the tile relative to the largest. cuBLAS mostly uses these shapes for large products on A100
# (NVIDIA, Deep Learning Performance: Matrix Multiplication Background, sections on tile and wave
# quantization).
_TILES = ((128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.95))


def tile_efficiency(rows: Array, columns: Array, multiprocessors: int) -> Array:
    """Utilisation (0..1) of the multiprocessors by a product with a [rows, columns] output.

    Tiles run in waves of one per multiprocessor, and the last wave of a product is rarely full.
    With one unit (a CPU) there are no waves, and tiles are too small to matter: 1.
    """
    if multiprocessors == 1:
        return np.ones(np.broadcast(rows, columns).shape)
    best = np.zeros(np.broadcast(rows, columns).shape)
    for height, width, speed in _TILES:
        tiles = np.ceil(rows / height) * np.ceil(columns / width)
        waves = np.ceil(tiles / multiprocessors)
        full = rows * columns / (height * width * multiprocessors)
        best = np.maximum(best, speed * full / waves)
    return best


def linear_seconds(
    tokens: Array, inputs: Array, outputs: Array, flops_per_second: float, multiprocessors: int
) -> tuple[Array, Array]:
    """Forward and backward time of a linear layer over `tokens` rows.

    The backward pass is two products: the gradients of the input and of the weight.
    """
    flops = 2 * tokens * inputs * outputs

    def product(rows: Array, columns: Array) -> Array:
        return flops / (tile_efficiency(rows, columns, multiprocessors) * flops_per_second)

    return product(tokens, outputs), product(tokens, inputs) + product(outputs, inputs)


def products_seconds(
    products: Iterable[Product], columns: Columns, setting: Setting, constants: Constants
) -> tuple[Array, Array]:
    """Forward and backward time [n] of linear layers over one micro-batch. Each shape is computed
    once, because of thousands of layouts a few dozen differ in it."""
    first, pair = columns.product_shapes
    tensor, one = columns.tensor_parallel[first], np.ones(len(first))
    tokens = columns.micro_batch_size[first] * setting.model.sequence_length
    forward = backward = np.zeros(len(first))
    for product in products:
        of_forward, of_backward = linear_seconds(
            tokens * product.share_of_tokens,
            product.inputs / (tensor if product.sharded == "inputs" else one),
            product.outputs / (tensor if product.sharded == "outputs" else one),
            setting.flops_per_second * constants["gemm_efficiency"],
            setting.multiprocessors,
        )
        forward = forward + product.count * of_forward
        backward = backward + product.count * of_backward
    return forward[pair], backward[pair]
