"""Options that select a search space; shared by `run` and `plan`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import pydantic

from autotune.cluster import Cluster
from autotune.cost.constants import known_constants
from autotune.errors import InputError, in_field, shortened
from autotune.hardware import Device, Network, device_named, network_named
from autotune.inputs import Name, shown, validated
from autotune.model import Precision
from autotune.models import is_folder, model_from_mapping, read_config
from autotune.named_spaces import load_space
from autotune.options.command_line import AMOUNT, COUNT
from autotune.options.names import DEVICE, NETWORK, SPACE
from autotune.space import SearchSpace

T = TypeVar("T")

_BOOLEANS = {"true": True, "false": False}
# Defaults for --model without --space: one node of 8 H100, 4 million tokens per step.
_DEFAULT_GPU = "h100"
_DEFAULT_GPUS_PER_NODE = 8
_DEFAULT_SEQUENCE_LENGTH = 4096
_DEFAULT_TOKENS_PER_STEP = 4 * 2**20
_MOST_STAGES = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpaceOptions:
    """A space, and options that replace parts of it, as given; None: not given."""

    space: str | Path | SearchSpace | None = None
    model: str | Path | Mapping[str, Any] | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    gpu: str | Device | None = None
    network: str | Network | None = None
    network_gbit: float | None = None
    precision: str | None = None
    sequence_length: int | None = None
    global_batch_size: int | None = None
    fix: Sequence[str] = ()


def space_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `SpaceOptions` to a command."""
    nodes = click.option("--nodes", type=COUNT, metavar="N", help="Nodes that every layout uses.")
    return space_options_but_nodes(nodes(command))


def space_options_but_nodes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `SpaceOptions` to a command that has its own --nodes."""
    options = (
        click.option("--space", type=SPACE, metavar="NAME|FILE.py", help="What to search."),
        click.option(
            "--model",
            metavar="PATH",
            help="A model: a Hugging Face config.json, or a folder with one.",
        ),
        click.option("--gpus-per-node", type=COUNT, metavar="G", help="Devices per node."),
        click.option(
            "--gpu", type=DEVICE, metavar="NAME|FILE.json", help="Device, if not the space's."
        ),
        click.option(
            "--network",
            type=NETWORK,
            metavar="NAME|FILE.json",
            help="Links and network of the nodes, if not the usual ones of the device.",
        ),
        click.option(
            "--network-gbit",
            type=AMOUNT,
            metavar="X",
            help="Network of a node in Gb/s, all its cards together, if not that network's.",
        ),
        click.option(
            "--precision", type=click.Choice(get_args(Precision)), help="What the model trains in."
        ),
        click.option("--sequence-length", type=COUNT, metavar="S"),
        click.option("--global-batch-size", type=COUNT, metavar="B", help="Sequences per step."),
        click.option(
            "--fix", multiple=True, metavar="DIMENSION=V[,V...]", help="Restrict a dimension."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def space_from_options(
    options: SpaceOptions, device: Callable[[Device], Device] | None = None
) -> SearchSpace:
    """The space that the options select; `device` maps its device to another. Raises InputError."""
    space = _named_space(options) if options.space is not None else _space_of_model(options)
    changes = _given({"nodes": options.nodes, "gpus_per_node": options.gpus_per_node})
    if device is not None:
        changes["device"] = device(space.cluster.device)
    elif options.gpu is not None:
        changes["device"] = device_of_option(options.gpu)
    if options.network is not None:
        current_device = changes.get("device", space.cluster.device)
        changes["device"] = _without_network(current_device)
        changes["network"] = network_of_option(options.network)
    if options.network_gbit is not None:
        links = _changed(space.cluster, changes).links
        speed = {"nic_gbit_per_second": options.network_gbit, "nics_per_node": 1}
        with in_field("network_gbit"):
            changes["network"] = _changed(links, {**speed, "oversubscription": 1.0})
    sizes = {
        "sequence_length": options.sequence_length,
        "global_batch_size": options.global_batch_size,
        "precision": options.precision,
    }
    model = _changed(space.model, _given(sizes))
    cluster = _changed(space.cluster, changes)
    space = space.replaced({"model": model, "cluster": cluster}, what="space")
    fixed: dict[str, tuple[Any, ...]] = {}
    for text in options.fix:
        dimension, values = parse_fix(text)
        if dimension in fixed:
            raise InputError(f"--fix: {shortened(dimension)} is given twice")
        fixed[dimension] = values
    with in_field("fix"):
        return space.restricted(fixed)


def _changed(value: T, fields: Mapping[str, Any]) -> T:
    """The dataclass with other fields, validated again. Raises InputError."""
    own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}  # type: ignore[arg-type]
    return validated(type(value), {**own, **fields}, what=None, names_field=True)


def device_of_option(gpu: str | Device) -> Device:
    """The device that --gpu names. Raises InputError."""
    if isinstance(gpu, Device):
        return gpu
    with in_field("gpu"):
        return device_named(gpu)


def network_of_option(network: str | Network) -> Network:
    """The network that --network names. Raises InputError."""
    if isinstance(network, Network):
        return network
    with in_field("network"):
        return network_named(network)


def _without_network(device: Device) -> Device:
    """The device without constants of a network, which calibrated hardware files contain."""
    known = known_constants()
    constants = {
        name: constant
        for name, constant in device.constants.items()
        if name not in known or known[name].of != "network"
    }
    return dataclasses.replace(device, constants=constants)


def parse_fix(text: str) -> tuple[str, tuple[Any, ...]]:
    """`DIMENSION=V[,V...]` as the dimension and its typed values. Raises InputError."""
    dimension, values = name_and_value(text, "--fix")
    return dimension, tuple(_typed(value.strip()) for value in values.split(","))


def name_and_value(text: str, option: str) -> tuple[str, str]:
    """Split `NAME=VALUE`. Raises InputError."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"{option} must be NAME=VALUE, got {shown(text)}")
    return name.strip(), value


def _named_space(options: SpaceOptions) -> SearchSpace:
    assert options.space is not None
    space = options.space
    if not isinstance(space, SearchSpace):
        space = load_space(str(space))
    if options.model is None:
        return space
    batch = {
        "sequence_length": space.model.sequence_length,
        "global_batch_size": space.model.global_batch_size,
    }
    fields = _fields_of(options.model)
    model = model_from_mapping({**batch, **fields}, what="--model")
    return space.replaced({"model": model}, what="--model")


def _space_of_model(options: SpaceOptions) -> SearchSpace:
    """The space of --model without --space: all layouts on one node, or on --nodes."""
    if options.model is None:
        raise InputError("--space or --model must be given, got neither")
    fields = _fields_of(options.model)
    length = options.sequence_length or fields.get("sequence_length") or _DEFAULT_SEQUENCE_LENGTH
    fields.setdefault("sequence_length", length)
    if isinstance(length, int) and length > 0:
        fields.setdefault("global_batch_size", max(1, _DEFAULT_TOKENS_PER_STEP // length))
    model = model_from_mapping(fields, what="--model")
    cluster = Cluster(
        nodes=1, gpus_per_node=_DEFAULT_GPUS_PER_NODE, device=device_named(_DEFAULT_GPU)
    )
    devices = (options.nodes or 1) * (options.gpus_per_node or _DEFAULT_GPUS_PER_NODE)
    most = min(model.num_hidden_layers, _MOST_STAGES, devices)
    sizes = tuple(size for size in range(1, most + 1) if devices % size == 0)
    return SearchSpace(
        name=_name_of(options.model), model=model, cluster=cluster, pipeline_parallel=sizes
    )


def _fields_of(model: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json, given as such, inline, or by its path. Raises InputError."""
    if isinstance(model, Mapping):
        return dict(model)
    return read_config(str(model), what="--model")


def _name_of(model: str | Path | Mapping[str, Any]) -> str:
    """Name of the space of a model: that of its file, or of the folder of a config.json.

    "model" for inline JSON, and where that name is invalid.
    """
    if isinstance(model, Mapping) or str(model).lstrip().startswith("{"):
        return "model"
    path = Path(model) / "config.json" if is_folder(str(model)) else Path(model)
    if path.suffix != ".json":
        return "model"
    name = path.absolute().parent.name if path.stem == "config" else path.stem
    try:
        return str(pydantic.TypeAdapter(Name).validate_python(name))
    except pydantic.ValidationError:
        return "model"


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _typed(text: str) -> Any:
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        return int(text)
    except ValueError:
        return text
