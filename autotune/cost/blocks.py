"""The mean block of a model: its matrix products, and the widths of what it computes and keeps.

Blocks may differ (first ones without experts, local and global attention); a stage has many, so
their mean stands for each.
"""

import dataclasses
import functools
from typing import Literal

from autotune.model import Model


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A linear layer of a block."""

    inputs: int
    outputs: int
    sharded: Literal["inputs", "outputs", "none"]
    """Which side tensor parallelism divides."""
    count: float = 1.0
    """Such layers per block, as a mean over the blocks."""
    share_of_tokens: float = 1.0
    """Rows of the product over the tokens of the micro-batch: an expert sees some of them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Elements per token in the mean block."""

    feed_forward: float
    """Of the feed-forward network, or of the experts that a token passes and the shared ones."""
    dispatched: float
    """Copies of the hidden state that go to experts and come back, in hidden states."""
    latent: int
    """Of the low-rank projections of latent attention, which every tensor-parallel rank has."""
    normed: int
    """Of queries and keys that are normed."""
    norms: int
    """Norms of the residual stream beyond the usual two."""


@functools.cache
def products_of(model: Model) -> tuple[Product, ...]:
    """The linear layers of the mean block. Those that read the same input are one product."""
    *into, (attended, hidden) = model.attention_products
    latent = model.latent_attention is not None
    attention = [
        # Low-rank projections are whole on every rank; what leads from them into heads is sharded.
        Product(
            inputs=inputs,
            outputs=outputs,
            sharded="none"
            if latent and inputs == hidden and not _into_heads(model, outputs)
            else "outputs",
        )
        for inputs, outputs in into
    ]
    attention.append(Product(inputs=attended, outputs=hidden, sharded="inputs"))
    share = model.expert_blocks / model.num_hidden_layers
    layers = [*attention]
    if share < 1:
        layers += _feed_forward(model, model.intermediate_size, count=1 - share)
    if model.experts is not None and share > 0:
        experts = model.experts
        layers.append(Product(inputs=hidden, outputs=experts.count, sharded="none", count=share))
        layers += _feed_forward(
            model,
            experts.intermediate_size,
            count=share * experts.count,
            share_of_tokens=experts.per_token / experts.count,
        )
        if experts.shared_intermediate_size:
            layers += _feed_forward(model, experts.shared_intermediate_size, count=share)
    return tuple(layers)


def _into_heads(model: Model, outputs: int) -> bool:
    return outputs == model.query_size


def _feed_forward(
    model: Model, width: int, *, count: float, share_of_tokens: float = 1.0
) -> list[Product]:
    *into, (inner, hidden) = model.feed_forward_products(width)
    more = {"count": count, "share_of_tokens": share_of_tokens}
    layers = [Product(inputs=i, outputs=o, sharded="outputs", **more) for i, o in into]
    return [*layers, Product(inputs=inner, outputs=hidden, sharded="inputs", **more)]


@functools.cache
def widths_of(model: Model) -> Widths:
    """The widths of the mean block."""
    share, latent = model.expert_blocks / model.num_hidden_layers, model.latent_attention
    feed_forward, dispatched = (1 - share) * model.intermediate_size, 0.0
    if model.experts is not None:
        experts = model.experts
        routed = experts.per_token * experts.intermediate_size
        feed_forward += share * (routed + experts.shared_intermediate_size)
        dispatched = share * 2 * experts.per_token
    return Widths(
        feed_forward=feed_forward,
        dispatched=dispatched,
        latent=0
        if latent is None
        else latent.key_value_rank + latent.rotated_head_size + (latent.query_rank or 0),
        normed=0 if model.qk_norm == "none" else model.query_size + model.key_size,
        norms=2 if model.norm_placement == "around" else 0,
    )
