"""The optimiser of trials and of training: AdamW with two groups of parameters."""

import torch
from torch import nn

from trainables.deepspeed_llm.hyperparameters import BETAS, EPSILON, LEARNING_RATE


def adamw(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """torch's fused AdamW: matrices, embeddings among them, are decayed; norms and biases are not.

    The first group is the decayed one. The module's parameters say which they belong to (`Build`):
    their shapes do not where ZeRO 3 has sharded them.
    """
    groups = [
        {
            "params": [p for p in model.parameters() if p.decayed is decayed],  # type: ignore[attr-defined]
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
