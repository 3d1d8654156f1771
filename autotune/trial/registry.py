"""The trainables that are installed: entry points of the group `autotune.trainables`.

A package registers its trainable in its pyproject.toml, for example::

    [project.entry-points."autotune.trainables"]
    mine = "my_package.tuning:DESCRIPTION"

where DESCRIPTION is a `TrainableDescription` of that name.
"""

import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.errors import InputError, message_of
from autotune.inputs import shown
from autotune.layout import Layout
from autotune.space import SearchSpace
from autotune.trial.traced import TracedRank
from autotune.trial.trainable import TrainableDescription
from autotune.trial.trial import spec_of

GROUP = "autotune.trainables"
WORKER = "deepspeed"
"""The trainable that is traced: our own worker."""

_registered: dict[str, TrainableDescription] = {}


def register(description: TrainableDescription) -> None:
    """Register a trainable in this process only, for example in a notebook or a test."""
    _registered[description.name] = description


def trainable_names() -> list[str]:
    """Names of all registered trainables, sorted."""
    return sorted({*_registered, *_entry_points()})


def describe_trainable(name: str) -> TrainableDescription:
    """The description of that name. Raises InputError for the field `trainable`."""
    if name in _registered:
        return _registered[name]
    if name not in (entry_points := _entry_points()):
        known = ", ".join(trainable_names())
        raise InputError(f"must be one of {known}, got {shown(name)}", field="trainable")
    try:
        description = entry_points[name].load()
    except Exception as error:  # code of another package
        reason = f"{type(error).__name__}: {message_of(error)}"
        raise InputError(f"{name} cannot be loaded: {reason}", field="trainable") from error
    if not isinstance(description, TrainableDescription) or description.name != name:
        raise InputError(
            f"{name} must be a TrainableDescription of that name, got {shown(description)}",
            field="trainable",
        )
    return description


def describe_configured(name: str, command: Mapping[str, Any] | None) -> TrainableDescription:
    """The description of that name with a training command, if there is one. Raises InputError."""
    description = describe_trainable(name)
    if command is None or description.configured is None:
        return description
    return description.configured(command)


def traced_stages(
    space: SearchSpace, layout: Layout, stages: Sequence[int], trainable: str = WORKER
) -> list[TracedRank]:
    """Trace a legal layout's first rank of each of these stages, without devices.

    Raises InputError for what the trainable does not train, and TracingFailed.
    """
    description = describe_trainable(trainable)
    if description.trace_ranks is None:
        raise InputError(f"{trainable} cannot be traced", field="trainable")
    description.check_model(space.model)
    return description.trace_ranks(spec_of(space, layout, trial_id="0", log_dir=None), stages)


@functools.cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
