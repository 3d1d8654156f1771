"""The beginning of a tensor-parallel region: its input and first matrix product in one function.

As in Megatron-LM (Korthikanti et al. 2022, arXiv 2205.05198), sequence parallelism keeps a rank's
shard of the input for the backward pass and gathers it again there. That all-gather runs while the
gradient of the input is computed, and adding up that gradient runs while the gradient of the weight
is computed.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.deepspeed_llm.tensor_parallel import Started, TensorParallel, finish


def entering_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, parallel: TensorParallel
) -> Tensor:
    """linear(parallel.enter(x), weight, bias), of which only x itself is kept.

    x [sequence (/ ranks with sequence parallelism), batch, inputs], weight [outputs, inputs] ->
    [sequence, batch, outputs].
    """
    if parallel.size == 1:
        return F.linear(x, weight, bias)
    product: Tensor = _EnteringLinear.apply(x, weight, bias, parallel)
    return product


class _EnteringLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, parallel: TensorParallel
    ) -> Tensor:
        of_x, of_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        ctx.parallel = parallel
        whole = finish(parallel.start_gather(x)) if parallel.sequence_parallel else x
        return F.linear(whole, weight, bias)

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        parallel: TensorParallel = ctx.parallel
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        towards_x = towards_weight = towards_bias = None
        gathering: Started = (x, None)
        if of_weight and parallel.sequence_parallel:
            gathering = parallel.start_gather(x)
        adding = parallel.start_sum(gradient @ weight) if of_x else None
        if of_weight:
            towards_weight = rows.t() @ finish(gathering).flatten(0, -2)
        if of_bias:
            towards_bias = rows.sum(0)
        if adding is not None:
            towards_x = finish(adding)
        return towards_x, towards_weight, towards_bias, None
