"""Which sizes are measured, on a GPU and on a CPU."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

# Hidden size, feed-forward size, heads, key-value heads.
WIDTHS = {
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
    "30b": (6656, 17920, 52, 52),
    "70b": (8192, 28672, 64, 8),
    "tiny": (256, 688, 8, 4),
    "small": (64, 192, 4, 2),
}
"""Sizes of a block by name."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the operations that are measured on one device."""

    tokens: Sequence[int]
    widths: Sequence[str]
    """Names of `WIDTHS`."""
    vocabulary: int
    lengths: Sequence[int]
    """Sequence lengths of attention, the shortest and the longest first: where time runs out, these
    two still give its curve."""
    attention_tokens: int
    """Tokens of one call of attention, of whatever length the sequences are."""
    heads: int
    head_size: int = 128
    copied_bytes: int
    optimised_parameters: int
    batch_seconds: float = 0.03
    """How long successive calls take that are timed together."""
    product: tuple[int, int, int]
    """Rows, inner size and columns of the matrix product between two collectives."""


OF_GPU = Sizes(
    tokens=(4096, 16_384),
    widths=("7b", "13b", "30b", "70b"),
    vocabulary=32_000,
    lengths=(1024, 16_384, 8192, 4096, 2048),
    attention_tokens=16_384,
    heads=40,
    copied_bytes=2**32,
    optimised_parameters=2**29,
    product=(4096, 5120, 5120),
)
"""Blocks of large models, which fill a GPU."""
OF_CPU = Sizes(
    tokens=(80, 320, 640),
    widths=("tiny",),
    vocabulary=4096,
    lengths=(64, 512, 256, 128),
    attention_tokens=512,
    heads=8,
    head_size=32,
    copied_bytes=2**24,
    optimised_parameters=2**20,
    batch_seconds=0.1,
    product=(320, 256, 688),
)
"""Blocks of a model that trains on a CPU in seconds. Ranks may share cores: a batch is longer than
the time slices of the operating system."""


def sizes_on(device_kind: Literal["gpu", "cpu"]) -> Sizes:
    """The sizes that a probe measures on such a device."""
    return OF_GPU if device_kind == "gpu" else OF_CPU


def message_bytes(device_kind: Literal["gpu", "cpu"]) -> list[int]:
    """Sizes of the tensors of collectives, the smallest and the largest first: where time runs out,
    these two still give latency and bandwidth."""
    smallest, largest = (2**12, 2**28) if device_kind == "gpu" else (2**12, 2**24)
    sizes = [smallest]
    while sizes[-1] < largest:
        sizes.append(sizes[-1] * 4)
    return [smallest, largest, *sizes[-2:0:-1]]
