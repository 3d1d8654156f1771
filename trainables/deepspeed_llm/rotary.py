"""Rotary position embedding: the tables of cosines and sines, and the rotation of heads."""

import functools
import math

import torch
from torch import Tensor

from autotune.model import Model, RopeScaling
from trainables.deepspeed_llm.pointwise import rotate

Table = tuple[Tensor, ...]
"""Cosine and sine of each position and frequency; nothing where positions are learned."""


@functools.cache
def rotary_table(
    length: int,
    size: int,
    theta: float,
    device: torch.device,
    dtype: torch.dtype,
    scaling: RopeScaling | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position and frequency, both [length, size]."""
    frequencies = theta ** -(torch.arange(0, size, 2, device=device).float() / size)
    if scaling is not None:
        frequencies = _scaled(frequencies, scaling)
    angles = torch.arange(length, device=device).float()[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _scaled(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Low frequencies divided by the factor, high ones as they are, a blend in between."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def table_of(model: Model, block: int, device: torch.device, dtype: torch.dtype) -> Table:
    """The table of a block: local blocks may have another base, and then no scaling."""
    if model.positions == "learned":
        return ()
    length, size = model.sequence_length, model.rotated_size
    if model.local_rope_theta is not None and model.window_of(block) is not None:
        return rotary_table(length, size, model.local_rope_theta, device, dtype)
    return rotary_table(length, size, model.rope_theta, device, dtype, model.rope_scaling)


def rotated(x: Tensor, table: Table) -> Tensor:
    """Rotate the first elements of each head, as many as the table has.

    [sequence, batch, heads, head_size], with tables of [sequence, at most head_size].
    """
    return rotate(x, *table) if table else x
