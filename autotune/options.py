"""From the words of the command line to a request: every rule that needs no Ray."""

import collections
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotune.corpus import check_data
from autotune.errors import InputError, validated
from autotune.layout import LAYOUT_COLUMNS, NOT_OFFERED
from autotune.model import model_from_mapping, read_json
from autotune.request import Request
from autotune.search import SEARCHES
from autotune.space import Excluded, SearchSpace, load_space

TRAINABLES = ("auto", "deepspeed", "simulated", "replay")
"""What may run the trials; auto is DeepSpeed."""

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SET_BY_US = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"}
    | {"MASTER_PORT", "DS_ACCELERATOR"}
)
_BOOLEANS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """The options of a new search as they were given; None was not given."""

    space: str
    trainable: str
    search: str
    max_trials: int | None
    gpu_hours: float | None
    nodes: int | None
    gpus_per_node: int | None
    seed: int
    stop_factor: float
    trial_timeout: float
    data: str | None
    synthetic_data: bool
    model: str | None
    sequence_length: int | None
    global_batch_size: int | None
    fix: Sequence[str]
    env: Sequence[str]


def request_from_options(options: SearchOptions) -> Request:
    """Check everything and freeze it. Raises InputError."""
    if options.trainable in ("simulated", "replay"):
        raise InputError(f"--trainable {options.trainable} is not there yet: use deepspeed")
    if options.search not in SEARCHES:
        raise InputError(f"--search must be one of {', '.join(SEARCHES)}, got {options.search!r}")
    space = _space(options)
    check_data(options.data, synthetic=options.synthetic_data, model=space.model)
    _refuse_empty(space)
    return validated(
        Request,
        {
            "space": space,
            "trainable": "deepspeed",
            "search": options.search,
            "seed": options.seed,
            "max_trials": options.max_trials or space.max_trials,
            "gpu_hours": options.gpu_hours,
            "stop_factor": options.stop_factor,
            "trial_timeout_seconds": options.trial_timeout,
            "data": None if options.data is None else str(Path(options.data).resolve()),
            "synthetic_data": options.synthetic_data,
            "env": dict(_variable(text) for text in options.env),
        },
        what="request",
    )


def parse_fix(text: str) -> tuple[str, tuple[Any, ...]]:
    """`DIMENSION=V[,V...]` as the dimension and its typed values. Raises InputError."""
    dimension, values = _name_and_value(text, "--fix")
    if dimension in NOT_OFFERED:
        raise InputError(f"--fix: {NOT_OFFERED[dimension]} ({dimension}) is not offered yet")
    if dimension not in LAYOUT_COLUMNS:
        raise InputError(
            f"--fix: dimension must be one of {', '.join(LAYOUT_COLUMNS)}, got {dimension!r}"
        )
    return dimension, tuple(_typed(value.strip()) for value in values.split(","))


def _space(options: SearchOptions) -> SearchSpace:
    space = load_space(options.space)
    model = space.model
    if options.model is not None:
        batch = {
            "sequence_length": model.sequence_length,
            "global_batch_size": model.global_batch_size,
        }
        model = model_from_mapping({**batch, **read_json(options.model, what="--model")})
    sizes = {
        "sequence_length": options.sequence_length,
        "global_batch_size": options.global_batch_size,
    }
    model = dataclasses.replace(model, **_given(sizes))
    shape = _given({"nodes": options.nodes, "gpus_per_node": options.gpus_per_node})
    cluster = dataclasses.replace(space.cluster, **shape)
    space = space.replaced({"model": model, "cluster": cluster}, what="--space")
    fixed: dict[str, tuple[Any, ...]] = {}
    for text in options.fix:
        dimension, values = parse_fix(text)
        if dimension in fixed:
            raise InputError(f"--fix: {dimension} is given twice")
        fixed[dimension] = values
    return space.restricted(fixed)


def _refuse_empty(space: SearchSpace) -> None:
    excluded: collections.Counter[str] = collections.Counter()
    for found in space.walk():
        if not isinstance(found, Excluded):
            return
        excluded[found.reason] += 1
    reason = excluded.most_common(1)[0][0]
    raise InputError(f"--space {space.name}: no layout is left, most often because {reason}")


def _variable(text: str) -> tuple[str, str]:
    """`NAME=VALUE` for the ranks' environment. Raises InputError."""
    name, value = _name_and_value(text, "--env")
    if not _VARIABLE_NAME.fullmatch(name):
        raise InputError(f"--env: NAME must be letters, digits and underscores, got {name!r}")
    if name in _SET_BY_US:
        raise InputError(f"--env: {name} is set for each rank and cannot be given")
    if "\0" in value:
        raise InputError(f"--env: the value of {name} must not contain a null character")
    return name, value


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _name_and_value(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"{option} must be NAME=VALUE, got {text!r}")
    return name.strip(), value


def _typed(text: str) -> Any:
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        return int(text)
    except ValueError:
        return text
