"""Converts the options of a search to a request, with every check that needs no Ray."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from autotune.calibration.recorded_runs import Sweep, read_sweeps
from autotune.cost.trainers import Trainer, constants_for, trainer_content, trainer_of
from autotune.errors import ClusterTooSmall, InputError, in_field, shortened
from autotune.inputs import default_of, listed, shown, validated
from autotune.layout import SEARCHED, Layout
from autotune.options.space_options import (
    SpaceOptions,
    name_and_value,
    space_from_options,
)
from autotune.request import Request
from autotune.search import SEARCHES
from autotune.space import SearchSpace
from autotune.trial.corpus import check_data
from autotune.trial.registry import describe_configured, describe_trainable, trainable_names
from autotune.trial.trainable import TrainableDescription

AUTO = "auto"
"""Value of --trainable that selects the trainable by the devices of this machine."""
# What `auto` selects with the devices, and without them.
_REAL, _SIMULATED = "deepspeed", "simulated"


def trainable_choices() -> list[str]:
    """Values of --trainable."""
    return [AUTO, *trainable_names()]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions(SpaceOptions):
    """The options of a new search as given; None: not given."""

    trainable: str = AUTO
    runs: str | Path | None = None
    command: str | Path | None = None
    simulated_trainer: str | None = None
    search: str = "guided"
    address: str | None = None
    max_trials: int | None = None
    gpu_hours: float | None = None
    training_gpu_hours: float | None = None
    reduced_trials: bool = default_of(Request, "reduced_trials")
    seed: int = default_of(Request, "seed")
    stop_factor: float = default_of(Request, "stop_factor")
    trial_timeout: float | None = None
    data: str | None = None
    synthetic_data: bool = False
    trace_steps: int = default_of(Request, "trace_steps")
    env: Sequence[str] = ()


def request_from_options(options: SearchOptions) -> Request:
    """Check the options and build the request. Raises InputError."""
    if options.search not in SEARCHES:
        raise InputError(
            f"must be one of {', '.join(SEARCHES)}, got {shown(options.search)}", field="search"
        )
    replays = options.trainable != AUTO and _describe(options.trainable).trains == "recorded"
    if (options.runs is None) == replays:
        raise InputError(
            f"--runs must be given with a trainable that replays recorded runs and only then, got "
            f"--trainable {options.trainable} and --runs {options.runs}"
        )
    sweep = None
    if options.runs is not None:
        sweep = _recorded_sweep(options)
        space = _recorded_space(sweep)
    elif options.space is None and options.model is None:
        raise InputError("--space, --model or --resume must be given, got none of them")
    else:
        space = space_from_options(options)
    name = _trainable(options, space)
    command = _command(options, name)
    description = describe_configured(name, command)
    simulated = _simulated_trainer(options, name)
    if simulated is not None:
        lacks_none = {"zero_stage": tuple(simulated.sharding)}
        description = dataclasses.replace(description, values=lacks_none)
    space = _as_the_trainable_needs(description, space)
    check_data(options.data, synthetic=options.synthetic_data, model=space.model)
    space.check_not_empty()
    request = validated(
        Request,
        {
            "space": space,
            "trainable": name,
            "search": options.search,
            "seed": options.seed,
            "max_trials": space.max_trials if options.max_trials is None else options.max_trials,
            "gpu_hours": options.gpu_hours,
            "training_gpu_hours": options.training_gpu_hours,
            "reduced_trials": options.reduced_trials,
            "stop_factor": options.stop_factor,
            "trial_timeout_seconds": _trial_timeout(options, description),
            "data": None if options.data is None else str(Path(options.data).resolve()),
            "synthetic_data": options.synthetic_data,
            "trace_steps": options.trace_steps,
            "env": environment(options.env),
            "runs": None if options.runs is None else str(Path(options.runs).resolve()),
            "command": command,
            "simulated_trainer": simulated and trainer_content(simulated),
            "layouts": sweep and tuple(run.layout for run in sweep.runs),
        },
        what=None,
        names_field=True,
    )
    # A hardware file may name constants that the cost model does not know.
    cluster = space.cluster
    constants_for(cluster.device, request.description.trainer, cluster.network)
    request.description.check_model(space.model)
    return request


def request_of_plan(space: SearchSpace) -> Request:
    """The request whose layouts a plan predicts: a simulated search of the whole space."""
    return Request(
        space=space,
        trainable=_SIMULATED,
        search=default_of(SearchOptions, "search"),
        max_trials=space.max_trials,
    )


def _describe(name: str) -> TrainableDescription:
    with in_field("trainable"):
        return describe_trainable(name)


def _trainable(options: SearchOptions, space: SearchSpace) -> str:
    """Name of the trainable: `auto` is deepspeed where the devices exist, else simulated."""
    if options.trainable != AUTO:
        return options.trainable
    if options.address is not None:
        return _REAL
    try:
        space.cluster.check_this_machine()
    except ClusterTooSmall:
        return _SIMULATED
    return _REAL


def _command(options: SearchOptions, name: str) -> dict[str, Any] | None:
    """The training command of --command, where the trainable runs one."""
    read = _describe(name).read_command
    if (options.command is None) != (read is None):
        raise InputError(
            "--command must be given for a trainable that runs a training command and only then, "
            f"got --trainable {options.trainable} and --command {options.command}"
        )
    return None if read is None else read(str(options.command))


def _trial_timeout(options: SearchOptions, description: TrainableDescription) -> float:
    for given in (options.trial_timeout, description.trial_timeout_seconds):
        if given is not None:
            return given
    default: float = default_of(Request, "trial_timeout_seconds")
    return default


def _as_the_trainable_needs(description: TrainableDescription, space: SearchSpace) -> SearchSpace:
    """The space with the trainable's numbers of steps and limits, and the values of dimensions that
    it knows. Raises InputError."""
    steps = {
        name: getattr(description, name)
        for name in ("warmup_steps", "measured_steps")
        if getattr(description, name) is not None
    }
    fields: dict[str, Any] = {
        **steps,
        "deepspeed_engine": trainer_of(description.trainer).deepspeed_engine,
    }
    cluster = space.cluster
    if cluster.device.kind == "cpu" and not description.limits_memory:
        share = psutil.virtual_memory().total / 2**30 / cluster.devices
        fields["cluster"] = dataclasses.replace(cluster, memory_gib=share)
    return _with_supported_dimensions(description, space.replaced(fields, what=None))


def _simulated_trainer(options: SearchOptions, name: str) -> Trainer | None:
    """The trainer of --simulated-trainer, which only some trainables take."""
    if options.simulated_trainer is None:
        return None
    if not _describe(name).simulates_trainers:
        raise InputError(
            "--simulated-trainer must be given for a trainable that simulates any trainer and only "
            f"then, got --trainable {options.trainable}"
        )
    with in_field("simulated_trainer"):
        return trainer_of(options.simulated_trainer)


def _with_supported_dimensions(
    description: TrainableDescription, space: SearchSpace
) -> SearchSpace:
    """The space with the values that the trainable knows, and a single value for each dimension
    that it does not support: the default of `Layout`, if the space has it, else the space's first
    value. Raises InputError where nothing is left."""
    fixed = {}
    for dimension in SEARCHED:
        values = getattr(space, dimension)
        if dimension not in description.dimensions and len(values) > 1:
            default = default_of(Layout, dimension)
            fixed[dimension] = (default if default in values else values[0],)
    for dimension, known in description.values.items():
        offered = getattr(space, dimension)
        fixed[dimension] = tuple(value for value in offered if value in known)
        if not fixed[dimension]:
            words = (listed([str(value) for value in values]) for values in (known, offered))
            raise InputError(
                f"the {description.name} trainable knows {dimension} {next(words)} only, "
                f"the space has {next(words)}"
            )
    return space.restricted(fixed)


def _recorded_sweep(options: SearchOptions) -> Sweep:
    """The only sweep of --runs, or the one with the model and the devices of --space."""
    assert options.runs is not None
    changes = {
        "--fix": options.fix,
        "--model": options.model,
        "--gpu": options.gpu,
        "--network": options.network,
        "--network-gbit": options.network_gbit,
        "--precision": options.precision,
        "--sequence-length": options.sequence_length,
        "--global-batch-size": options.global_batch_size,
        "--gpus-per-node": options.gpus_per_node,
        "--nodes": options.nodes if options.space is None else None,
    }
    if given := [name for name, value in changes.items() if value]:
        raise InputError(
            f"--trainable replay uses all recorded layouts unchanged: {given[0]} cannot be given"
        )
    sweeps = read_sweeps(Path(options.runs))
    if options.space is not None:
        space = space_from_options(options)
        required = (dataclasses.replace(space.model, precision="bf16"), space.cluster.devices)
        sweeps = [sweep for sweep in sweeps if (sweep.model, sweep.cluster.devices) == required]
        if not sweeps:
            raise InputError(
                f"--runs: no sweep has the model, the batch and the {space.cluster.devices} "
                f"devices of space {space.name}"
            )
    if len(sweeps) > 1:
        names = ", ".join(sweep.name for sweep in sweeps)
        raise InputError(f"--runs must hold one sweep to replay, got {names}")
    return sweeps[0]


def _recorded_space(sweep: Sweep) -> SearchSpace:
    """The smallest space that contains the recorded layouts."""
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


def environment(variables: Sequence[str]) -> dict[str, str]:
    """The variables of --env (`NAME=VALUE`) as a dictionary. Raises InputError."""
    environment: dict[str, str] = {}
    for text in variables:
        name, value = name_and_value(text, "--env")
        if name in environment:
            raise InputError(f"--env: {shortened(name)} is given twice")
        environment[name] = value
    return environment
