"""Activation checkpointing."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call the function, and recompute it in the backward pass.

    The random state is not saved: there is no dropout, and saving would synchronise with the GPU.
    """
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result
