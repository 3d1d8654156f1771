"""Gated feed-forward networks of many experts, each on its own group of rows.

One autograd function for all experts: the element-wise operations see all rows at once, so that
their shapes do not change with the routing, and gradients of weights are written in place.
"""

from typing import Any

import torch
from torch import Tensor

from autotune.model import Activation
from trainables.deepspeed_llm.pointwise import gated, gated_backward


def grouped_gated_linear(
    rows: Tensor,
    gate_ups: Tensor,
    downs: Tensor,
    counts: list[int],
    activation: Activation,
) -> Tensor:
    """(activation(x @ gate.T) * (x @ up.T)) @ down.T with the matrices of each row's expert.

    rows [tokens, hidden], the first `counts[0]` of expert 0 and so on; gate_ups
    [experts, 2 * inner, hidden], the gate first; downs [experts, hidden, inner] ->
    [tokens, hidden].
    """
    output: Tensor = _GroupedGatedLinear.apply(rows, gate_ups, downs, counts, activation)
    return output


class _GroupedGatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        gate_ups: Tensor,
        downs: Tensor,
        counts: list[int],
        activation: Activation,
    ) -> Tensor:
        inner = _products(rows, gate_ups, counts)
        ctx.save_for_backward(rows, gate_ups, downs, inner)
        ctx.counts, ctx.activation = counts, activation
        return _products(gated(inner, activation=activation), downs, counts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate_ups, downs, inner = ctx.saved_tensors
        counts = ctx.counts
        towards_inner, product = gated_backward(
            _products(gradient, downs.mT, counts), inner, activation=ctx.activation
        )
        return (
            _products(towards_inner, gate_ups.mT, counts),
            _weight_gradients(towards_inner, rows, counts),
            _weight_gradients(gradient, product, counts),
            None,
            None,
        )


def _products(rows: Tensor, matrices: Tensor, counts: list[int]) -> Tensor:
    """Each group times the transpose of its matrix: [tokens, outputs]."""
    products = rows.new_empty(len(rows), matrices.shape[1])
    for group, matrix, into in zip(
        rows.split(counts), matrices, products.split(counts), strict=True
    ):
        torch.mm(group, matrix.t(), out=into)
    return products


def _weight_gradients(gradient: Tensor, inputs: Tensor, counts: list[int]) -> Tensor:
    """[tokens, outputs], [tokens, inputs] -> [experts, outputs, inputs]; zeros without tokens."""
    gradients = gradient.new_empty(len(counts), gradient.shape[1], inputs.shape[1])
    for rows, group, into in zip(
        gradient.split(counts), inputs.split(counts), gradients, strict=True
    ):
        torch.mm(rows.t(), group, out=into)
    return gradients
