"""Section 3: microbenchmarks of the operations of a layer, by size (`trainables.probe.curves`)."""

from typing import Any

from trainables.probe import curves
from trainables.probe.curves import device_facts
from trainables.probe.sizes import OF_GPU, Sizes

__all__ = ["attention", "bandwidth", "device_facts", "matrix_products"]

_SMALL = Sizes(
    tokens=(256,),
    widths=("small",),
    vocabulary=512,
    lengths=(64, 128, 256),
    attention_tokens=256,
    heads=4,
    copied_bytes=2**24,
    optimised_parameters=2**18,
    product=(256, 64, 64),
)


def matrix_products(device_kind: Any) -> list[dict[str, Any]]:
    """TFLOP/s by size."""
    return list(curves.matrix_products(device_kind, _sizes(device_kind), curves.alone))


def attention(device_kind: Any, kernel: str) -> list[dict[str, Any]]:
    """TFLOP/s of a kernel by sequence length."""
    return list(curves.attention(device_kind, _sizes(device_kind), curves.alone, kernel))


def bandwidth(device_kind: Any) -> dict[str, float]:
    """GB/s by operation."""
    return dict(curves.bandwidth(device_kind, _sizes(device_kind), curves.alone))


def _sizes(device_kind: str) -> Sizes:
    return OF_GPU if device_kind == "gpu" else _SMALL
