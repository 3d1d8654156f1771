"""From the words of the command line to a request: every rule that needs no Ray."""

import collections
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotune.corpus import check_data
from autotune.errors import ClusterTooSmall, InputError, validated
from autotune.hardware import device_named
from autotune.layout import LAYOUT_COLUMNS, NOT_OFFERED
from autotune.local_devices import refuse_without_devices
from autotune.model import model_from_mapping, read_json
from autotune.recorded import Sweep, read_sweeps
from autotune.request import Request
from autotune.search import SEARCHES
from autotune.space import SEARCHED, Excluded, SearchSpace, load_space

TRAINABLES = ("auto", "deepspeed", "simulated", "replay")
"""What may run the trials; auto is DeepSpeed where the devices are, else a simulation."""

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SET_BY_US = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"}
    | {"MASTER_PORT", "DS_ACCELERATOR"}
)
_BOOLEANS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """The options of a new search as they were given; None was not given."""

    space: str | None
    trainable: str
    runs: str | None
    address: str | None
    gpu: str | None
    search: str
    max_trials: int | None
    gpu_hours: float | None
    training_gpu_hours: float | None
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
    if options.search not in SEARCHES:
        raise InputError(f"--search must be one of {', '.join(SEARCHES)}, got {options.search!r}")
    if (options.runs is None) == (options.trainable == "replay"):
        raise InputError(
            "--runs must be given with --trainable replay and only then, "
            f"got --trainable {options.trainable} and --runs {options.runs}"
        )
    sweep = None
    if options.runs is not None:
        sweep = _recorded_sweep(options)
        space = _recorded_space(sweep)
    elif options.space is None:
        raise InputError("--space or --resume must be given, got neither")
    else:
        space = _space(options)
    check_data(options.data, synthetic=options.synthetic_data, model=space.model)
    _refuse_empty(space)
    return validated(
        Request,
        {
            "space": space,
            "trainable": _trainable(options, space),
            "search": options.search,
            "seed": options.seed,
            "max_trials": options.max_trials or space.max_trials,
            "gpu_hours": options.gpu_hours,
            "training_gpu_hours": options.training_gpu_hours,
            "stop_factor": options.stop_factor,
            "trial_timeout_seconds": options.trial_timeout,
            "data": None if options.data is None else str(Path(options.data).resolve()),
            "synthetic_data": options.synthetic_data,
            "env": dict(_variable(text) for text in options.env),
            "runs": None if options.runs is None else str(Path(options.runs).resolve()),
            "layouts": sweep and tuple(run.layout for run in sweep.runs),
        },
        what="request",
    )


def _trainable(options: SearchOptions, space: SearchSpace) -> str:
    """What runs the trials: `auto` is DeepSpeed where the devices are, else a simulation."""
    if options.trainable != "auto":
        return options.trainable
    if options.address is not None:
        return "deepspeed"
    try:
        refuse_without_devices(space.cluster)
    except ClusterTooSmall:
        return "simulated"
    return "deepspeed"


def _recorded_sweep(options: SearchOptions) -> Sweep:
    """The one sweep of --runs, or the one that has the model and the devices of --space."""
    assert options.runs is not None
    sweeps = read_sweeps(Path(options.runs))
    if options.space is not None:
        space = _space(options)
        wanted = (dataclasses.replace(space.model, precision="bf16"), space.cluster.devices)
        sweeps = [sweep for sweep in sweeps if (sweep.model, sweep.cluster.devices) == wanted]
        if not sweeps:
            raise InputError(
                f"--runs: no sweep has the model, the batch and the {space.cluster.devices} "
                f"devices of --space {options.space}"
            )
    elif options.fix or options.model or options.nodes or options.gpus_per_node:
        raise InputError(
            "--runs without --space replays all that was recorded: --fix, --model, "
            "--nodes and --gpus-per-node cannot be given"
        )
    if len(sweeps) > 1:
        names = ", ".join(sweep.name for sweep in sweeps)
        raise InputError(f"--runs must hold one sweep to replay, got {names}")
    return sweeps[0]


def _recorded_space(sweep: Sweep) -> SearchSpace:
    """The space that just holds the recorded layouts."""
    layouts = [run.layout for run in sweep.runs]
    values = {
        dimension: tuple(dict.fromkeys(getattr(layout, dimension) for layout in layouts))
        for dimension in SEARCHED
    }
    device = dataclasses.replace(sweep.cluster.device, attention_kernels=values["attention_kernel"])
    return validated(
        SearchSpace,
        {
            "name": sweep.name,
            "model": sweep.model,
            "cluster": dataclasses.replace(sweep.cluster, device=device),
            **values,
        },
        what=f"sweep {sweep.name}",
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
    assert options.space is not None
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
    if options.gpu is not None:
        shape["device"] = device_named(options.gpu)
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
