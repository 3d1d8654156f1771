"""The trainables that are installed: entry points of the group `autotune.trainables`.

A package makes its trainable known in its pyproject.toml, for example::

    [project.entry-points."autotune.trainables"]
    mine = "my_package.tuning:DESCRIPTION"

where DESCRIPTION is a `TrainableDescription` of that name.
"""

import functools
import importlib.metadata

from autotune.errors import InputError
from autotune.trial.trainable import TrainableDescription

GROUP = "autotune.trainables"

_registered: dict[str, TrainableDescription] = {}


def register(description: TrainableDescription) -> None:
    """Make a trainable known to this process, as a notebook or a test does."""
    _registered[description.name] = description


def trainable_names() -> list[str]:
    """Names of all trainables that can be asked for, sorted."""
    return sorted({*_registered, *_entry_points()})


def describe_trainable(name: str) -> TrainableDescription:
    """The description of that name. Raises InputError for the field `trainable`."""
    if name in _registered:
        return _registered[name]
    if name not in (found := _entry_points()):
        known = ", ".join(trainable_names())
        raise InputError(f"must be one of {known}, got {name!r}", field="trainable")
    try:
        description = found[name].load()
    except Exception as error:  # code of another package
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{name} cannot be loaded: {reason}", field="trainable") from error
    if not isinstance(description, TrainableDescription) or description.name != name:
        raise InputError(
            f"{name} must be a TrainableDescription of that name, got {description!r}",
            field="trainable",
        )
    return description


@functools.cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {found.name: found for found in importlib.metadata.entry_points(group=GROUP)}
