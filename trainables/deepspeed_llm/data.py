"""Batches of training samples: every layout gets the same."""

import numpy as np
import torch
from torch import Tensor

from trainables.deepspeed_llm.tokens import Samples


def batch_slice(
    samples: Samples, step: int, *, global_batch_size: int, replica: int, replicas: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one replica, both [global_batch_size / replicas, sequence_length].

    The global batch depends only on the step. Each replica gets a contiguous part of it.
    """
    own = global_batch_size // replicas
    first = step * global_batch_size + replica * own
    rows = np.stack([samples.sample(first + row) for row in range(own)])
    tokens = torch.from_numpy(rows)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
