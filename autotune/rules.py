"""Which layouts are legal for a model: one rule per dimension, each with its reason.

A rule sees the dimensions that were chosen before its own (the order of `LAYOUT_COLUMNS`), so a
space can be walked dimension by dimension and an illegal branch is never entered.
"""

from collections.abc import Callable, Mapping
from typing import Any

from autotune.layout import LAYOUT_COLUMNS, Layout
from autotune.model import Model, Precision

Chosen = Mapping[str, Any]
Rule = Callable[[Chosen, Model, Precision], str | None]


def illegal(dimension: str, chosen: Chosen, model: Model, precision: Precision) -> str | None:
    """Why `chosen[dimension]` is illegal after the earlier dimensions, or None."""
    rule = _RULES.get(dimension)
    return rule(chosen, model, precision) if rule else None


def why_illegal(layout: Layout, model: Model, precision: Precision) -> str | None:
    """The first reason why the layout cannot be trained, or None."""
    chosen = layout.columns()
    reasons = (illegal(dimension, chosen, model, precision) for dimension in LAYOUT_COLUMNS)
    return next((reason for reason in reasons if reason), None)


def _tensor_parallel(chosen: Chosen, model: Model, precision: Precision) -> str | None:
    size = chosen["tensor_parallel"]
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        if getattr(model, name) % size:
            return f"tensor_parallel must divide {name}, got {size} and {getattr(model, name)}"
    return None


def _pipeline_parallel(chosen: Chosen, model: Model, precision: Precision) -> str | None:
    stages = chosen["pipeline_parallel"]
    if stages > model.num_hidden_layers:
        return (
            "pipeline_parallel must be at most num_hidden_layers (no stage without a block), "
            f"got {stages} and {model.num_hidden_layers}"
        )
    return None


def _zero_stage(chosen: Chosen, model: Model, precision: Precision) -> str | None:
    stage = chosen["zero_stage"]
    if precision == "bf16" and stage == 0:
        return "bf16 needs zero_stage 1 to 3 (DeepSpeed's bf16 stage 0 is stage 1), got 0"
    if chosen["pipeline_parallel"] > 1 and stage > 1:
        return (
            "pipeline_parallel > 1 needs zero_stage 0 or 1 (DeepSpeed's pipeline engine has no "
            f"other), got {stage}"
        )
    return None


def _micro_batch_size(chosen: Chosen, model: Model, precision: Precision) -> str | None:
    replicas, size = chosen["data_parallel"], chosen["micro_batch_size"]
    if model.global_batch_size % (replicas * size):
        return (
            "data_parallel * micro_batch_size must divide global_batch_size, "
            f"got {replicas} * {size} and {model.global_batch_size}"
        )
    return None


def _sequence_parallel(chosen: Chosen, model: Model, precision: Precision) -> str | None:
    tensor = chosen["tensor_parallel"]
    if not chosen["sequence_parallel"]:
        return None
    if tensor == 1:
        return "sequence_parallel needs tensor_parallel > 1, got 1"
    if model.sequence_length % tensor:
        return (
            "tensor_parallel must divide sequence_length with sequence_parallel, "
            f"got {tensor} and {model.sequence_length}"
        )
    return None


_RULES: dict[str, Rule] = {
    "tensor_parallel": _tensor_parallel,
    "pipeline_parallel": _pipeline_parallel,
    "zero_stage": _zero_stage,
    "micro_batch_size": _micro_batch_size,
    "sequence_parallel": _sequence_parallel,
}
