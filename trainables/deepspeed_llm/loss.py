"""Cross-entropy behind the output matrix, without ever holding all logits.

At a vocabulary of 128k the logits are the largest activation of all. They are made for some tokens
at a time, and turned into their own gradient at once, as in Liger-Kernel (Hsu et al. 2024, arXiv
2410.10989): no product is computed twice, and what is kept has the size of the inputs.
"""

from typing import Any

import torch
from torch import Tensor

from trainables.deepspeed_llm.pointwise import one_kernel
from trainables.deepspeed_llm.tensor_parallel import TensorParallel

LOGITS_AT_A_TIME = 2**28
"""Most logits of a rank that exist at once: 2,048 tokens of 128k. On GPUs no other copy is made."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, parallel: TensorParallel
) -> Tensor:
    """Mean cross-entropy of softmax(hidden @ weight.T) against the targets.

    `hidden` is [sequence, batch, hidden], `weight` this rank's rows of [vocabulary, hidden],
    `targets` [batch, sequence] over the whole vocabulary.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, parallel)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, parallel: TensorParallel
    ) -> Tensor:
        rows = hidden.flatten(0, 1)
        labels = targets.transpose(0, 1).reshape(-1)
        parts = -(-len(rows) * len(weight) // LOGITS_AT_A_TIME)
        loss = torch.zeros((), device=rows.device)
        with_gradient = any(ctx.needs_input_grad)
        row_gradients: list[Tensor] = []
        weight_gradient = torch.zeros_like(weight) if with_gradient and parts > 1 else None
        for some, their_labels in zip(rows.chunk(parts), labels.chunk(parts), strict=True):
            logits = some @ weight.t()
            loss += _turn_into_gradient(logits, their_labels, parallel)
            if not with_gradient:
                continue
            row_gradients.append(logits @ weight)
            if weight_gradient is None:
                weight_gradient = logits.t() @ some
            else:
                weight_gradient.addmm_(logits.t(), some)
        if weight_gradient is not None:
            ctx.shape, ctx.tokens = hidden.shape, len(rows)
            gradients = row_gradients[0] if parts == 1 else torch.cat(row_gradients)
            ctx.save_for_backward(gradients, weight_gradient)
        return loss / len(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        # Both tensors are this function's own: they are scaled in place.
        rows, weight = ctx.saved_tensors
        scale = gradient / ctx.tokens
        return rows.mul_(scale).view(ctx.shape), weight.mul_(scale), None, None


def _turn_into_gradient(logits: Tensor, labels: Tensor, parallel: TensorParallel) -> Tensor:
    """Replace [tokens, vocabulary slice] by softmax minus one-hot; the sum of the losses.

    With tensor parallelism no rank sees a whole row: log-sum-exps are combined over the ranks.
    """
    columns = logits.shape[-1]
    local = labels - parallel.rank * columns
    elsewhere = (local < 0) | (local >= columns)
    local = local.masked_fill(elsewhere, 0)[:, None]
    target = logits.gather(-1, local)[:, 0].float()
    log_sum = _log_sum_exp(logits)
    own_target = target.masked_fill(elsewhere, 0)
    if parallel.size > 1:
        parallel.all_reduce(own_target)
        largest = parallel.all_reduce(log_sum.clone(), op=torch.distributed.ReduceOp.MAX)
        total = parallel.all_reduce((log_sum - largest).exp_())
        log_sum = largest + total.log()
    _turn_into_softmax(logits, log_sum)
    # The target's own element anew: in bf16 it would be lost where the softmax is close to one.
    probability = (target - log_sum).exp_()
    own = torch.where(elsewhere, probability, probability - 1)
    logits.scatter_(-1, local, own[:, None].to(logits.dtype))
    return (log_sum - own_target).sum()


@one_kernel
def _log_sum_exp(logits: Tensor) -> Tensor:
    """[tokens] in fp32."""
    return torch.logsumexp(logits.float(), -1)


@one_kernel
def _turn_into_softmax(logits: Tensor, log_sum: Tensor) -> None:
    wide = logits.float()
    wide.sub_(log_sum[:, None]).exp_()
    if wide.dtype != logits.dtype:
        logits.copy_(wide)
