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
from torch._C._distributed_c10d import _resolve_process_group

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
        whole = parallel.gather(x) if parallel.sequence_parallel else x
        return F.linear(whole, weight, bias)

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        parallel: TensorParallel = ctx.parallel
        if torch.compiler.is_compiling() and x is not None and weight is not None:
            of_x, of_weight = _opaque_gradients(
                gradient, x, weight, parallel.size, parallel.sequence_parallel, parallel.group_name
            )
        else:
            of_x, of_weight = _gradients(gradient, x, weight, parallel)
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias, None


def _gradients(
    gradient: Tensor, x: Tensor | None, weight: Tensor | None, parallel: TensorParallel
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of input and weight; of the input without the weight, and the other way round."""
    of_x = of_weight = None
    gathering: Started | None = None
    if x is not None:
        gathering = parallel.start_gather(x) if parallel.sequence_parallel else (x, None)
    adding = None if weight is None else parallel.start_adding_up(gradient @ weight)
    if gathering is not None:
        of_weight = gradient.flatten(0, -2).t() @ finish(gathering).flatten(0, -2)
    if adding is not None:
        of_x = finish(adding)
    return of_x, of_weight


@torch.library.custom_op("autotune::region_gradients", mutates_args=())
def _opaque_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, size: int, sequence_parallel: bool, group: str
) -> tuple[Tensor, Tensor]:
    """`_gradients` within compiled blocks: torch.compile would take the two all-gathers of an input
    for one, keep its result, and wait for each collective at once."""
    named: Any = group
    parallel = TensorParallel(
        size=size, sequence_parallel=sequence_parallel, group=_resolve_process_group(named)
    )
    of_x, of_weight = _gradients(gradient, x, weight, parallel)
    assert of_x is not None and of_weight is not None
    return of_x, of_weight


@_opaque_gradients.register_fake
def _shapes(
    gradient: Tensor, x: Tensor, weight: Tensor, size: int, sequence_parallel: bool, group: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)
