"""Output projection and cross-entropy in one function that never stores all logits.

At a vocabulary of 128k the logits are the largest activation. They are computed for one chunk of
tokens at a time and overwritten by their gradient at once, as in Liger-Kernel (Hsu et al. 2024,
arXiv 2410.10989). No matrix product is computed twice, and only tensors of the size of the inputs
are saved for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from trainables.deepspeed_llm.pointwise import one_kernel
from trainables.deepspeed_llm.tensor_parallel import TensorParallel

LOGITS_AT_A_TIME = 2**28
"""Maximum number of logits in a chunk: 2,048 tokens of 128k. On GPUs there is a second copy only of
capped ones."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    parallel: TensorParallel,
    cap: float | None = None,
) -> Tensor:
    """Mean cross-entropy of softmax(hidden @ weight.T) against the targets.

    With a `cap` of the logits: of softmax(cap * tanh(hidden @ weight.T / cap)).

    `hidden` is [sequence, batch, hidden], `weight` this rank's rows of [vocabulary, hidden],
    `targets` [batch, sequence] with token ids of the full vocabulary.
    """
    if not torch.is_grad_enabled():  # the function computes gradients of what requires them
        hidden, weight = hidden.detach(), weight.detach()
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, parallel, cap)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        parallel: TensorParallel,
        cap: float | None,
    ) -> Tensor:
        rows = hidden.flatten(0, 1)
        labels = targets.transpose(0, 1).reshape(-1)
        chunks = -(-len(rows) * len(weight) // LOGITS_AT_A_TIME)
        loss = torch.zeros((), device=rows.device)
        with_gradient = any(ctx.needs_input_grad)
        row_gradients: list[Tensor] = []
        weight_gradient = torch.zeros_like(weight) if with_gradient and chunks > 1 else None
        for chunk, chunk_labels in zip(rows.chunk(chunks), labels.chunk(chunks), strict=True):
            logits = chunk @ weight.t()
            slope = None if cap is None else _cap(logits, cap)
            loss += _turn_into_gradient(logits, chunk_labels, parallel)
            if not with_gradient:
                continue
            if slope is not None:
                logits.mul_(slope)
            row_gradients.append(logits @ weight)
            if weight_gradient is None:
                weight_gradient = logits.t() @ chunk
            else:
                weight_gradient.addmm_(logits.t(), chunk)
        if weight_gradient is not None:
            ctx.shape, ctx.tokens = hidden.shape, len(rows)
            gradients = row_gradients[0] if chunks == 1 else torch.cat(row_gradients)
            ctx.save_for_backward(gradients, weight_gradient)
        return loss / len(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        # No one else refers to the two saved tensors, so they are scaled in place.
        rows, weight = ctx.saved_tensors
        scale = gradient / ctx.tokens
        return rows.mul_(scale).view(ctx.shape), weight.mul_(scale), None, None, None


def _turn_into_gradient(logits: Tensor, labels: Tensor, parallel: TensorParallel) -> Tensor:
    """Overwrite logits [tokens, vocabulary slice] by softmax minus one-hot; returns the loss sum.

    With tensor parallelism no rank sees a whole row: log-sum-exps are combined over the ranks.
    """
    columns = logits.shape[-1]
    local = labels - parallel.rank * columns
    on_other_ranks = (local < 0) | (local >= columns)
    local = local.masked_fill(on_other_ranks, 0)[:, None]
    target = logits.gather(-1, local)[:, 0].float()
    log_sum = _log_sum_exp(logits)
    own_target = target.masked_fill(on_other_ranks, 0)
    if parallel.size > 1:
        parallel.all_reduce(own_target)
        largest = parallel.all_reduce(log_sum.clone(), op=torch.distributed.ReduceOp.MAX)
        total = parallel.all_reduce((log_sum - largest).exp_())
        log_sum = largest + total.log()
    _turn_into_softmax(logits, log_sum)
    # The target's element in fp32: bf16 rounds a softmax close to 1 to 1, and its gradient to 0.
    probability = (target - log_sum).exp_()
    target_gradient = torch.where(on_other_ranks, probability, probability - 1)
    logits.scatter_(-1, local, target_gradient[:, None].to(logits.dtype))
    return (log_sum - own_target).sum()


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap); the logits themselves where there is no cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


@one_kernel
def _cap(logits: Tensor, cap: float) -> Tensor:
    """Cap the logits in place; returns the derivative of each."""
    bounded = torch.tanh(logits / cap)
    logits.copy_(cap * bounded)
    return 1 - bounded.square()


@one_kernel
def _log_sum_exp(logits: Tensor) -> Tensor:
    """log(sum(exp(logits))) of each token, [tokens] in fp32."""
    return torch.logsumexp(logits.float(), -1)


@one_kernel
def _turn_into_softmax(logits: Tensor, log_sum: Tensor) -> None:
    wide = logits.float()
    wide.sub_(log_sum[:, None]).exp_()
    if wide.dtype != logits.dtype:
        logits.copy_(wide)
