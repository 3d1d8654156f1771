"""`autotune probe`: measure devices and network of the cluster at hand, as hardware files."""

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pydantic

from autotune.calibration.probed import Probed
from autotune.cluster import Cluster
from autotune.errors import InputError, in_field
from autotune.hardware import (
    Device,
    Network,
    device_named,
    device_to_json,
    network_to_json,
    unknown_gpu,
)
from autotune.hardware.local_devices import local_gpus
from autotune.inputs import shown, validated
from autotune.ledger.interruption import signals_interrupt
from autotune.on_ray.address import refuse_address_by_form
from autotune.options.command_line import AMOUNT, COUNT, PATH, SECONDS
from autotune.options.names import DEVICE, NETWORK, SPACE
from autotune.options.output import plain_console
from autotune.options.search_options import environment
from autotune.options.space_options import (
    SpaceOptions,
    device_of_option,
    network_of_option,
    space_from_options,
)
from autotune.output_paths import refuse_impossible_directory
from autotune.report.probe import print_probed
from autotune.store.files import write_atomically
from autotune.trial.registry import describe_trainable
from autotune.trial.trainable import Finding

_TRAINABLE = "deepspeed"
_DEVICE_FILE, _NETWORK_FILE = "device.json", "network.json"


# Each is a process with torch, of some hundred MB.
_MOST_VIRTUAL_DEVICES = 64


@click.command()
@click.option(
    "--space", type=SPACE, metavar="NAME|FILE.py", help="Probe the cluster of this search space."
)
@click.option("--nodes", type=COUNT, metavar="N", help="Nodes to measure  [default: 1]")
@click.option(
    "--gpus-per-node",
    type=COUNT,
    metavar="G",
    help="Devices per node  [default: the GPUs of this machine, or 1 on CPUs]",
)
@click.option(
    "--gpu", type=DEVICE, metavar="NAME|FILE.json", help="Device, if not recognised by its name."
)
@click.option(
    "--network",
    type=NETWORK,
    metavar="NAME|FILE.json",
    help="Where figures come from that are not measured, such as the network of a single node.",
)
@click.option("--memory-gib", type=AMOUNT, metavar="X", help="Memory per device for the file.")
@click.option("--peak-tflops", type=AMOUNT, metavar="X", help="Dense peak of the device.")
@click.option("--address", metavar="RAY", help="Address of a running Ray cluster.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment of the ranks.")
@click.option("--out", type=PATH, metavar="DIR", help="New directory  [default: probe-DATE]")
@click.option(
    "--seconds",
    type=SECONDS,
    default=200.0,
    show_default=True,
    help="Time for the measurements; the start comes on top.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_context
def main(
    context: click.Context,
    /,
    *,
    memory_gib: float | None,
    peak_tflops: float | None,
    address: str | None,
    env: tuple[str, ...],
    out: Path | None,
    seconds: float,
    as_json: bool,
    **options: Any,
) -> int:
    """Measure devices and network of the nodes at hand, and write a hardware file of each.

    DIR/device.json and DIR/network.json are for --gpu and --network of `plan` and `run`.
    """
    context.with_resource(signals_interrupt())
    cluster = _cluster(SpaceOptions(**options), address)
    variables = environment(env)
    date = datetime.date.today()
    out = out or Path(f"probe-{date}")
    with in_field("out"):
        _refuse_used(out)
    console = plain_console(stderr=as_json)
    console.print(f"probing {cluster.describe()} for about {seconds:g} s", soft_wrap=True)
    probed = Probed()
    cluster, hosts = _measure(
        cluster,
        probed,
        address=address,
        env=variables,
        seconds=seconds,
        recognise=options["gpu"] is None,
    )
    source = f"measured by autotune probe, {date}, {probed.library}"
    stated = {"memory_gib": memory_gib}
    stated["peak_bf16_tflops" if cluster.device.kind == "gpu" else "peak_fp32_tflops"] = peak_tflops
    known = _with_figures(cluster.device, stated)
    device = probed.device(known, source)
    network = probed.network(cluster, source + _remark(cluster, hosts))
    paths = _write(out, device, network)
    if as_json:
        content = _content(cluster, probed, device, network)
        print(json.dumps({**content, "files": {name: str(path) for name, path in paths.items()}}))
        return 0
    print_probed(console, probed)
    console.print(
        f"wrote {paths['device']} and {paths['network']}; use them with "
        f"--gpu {paths['device']} --network {paths['network']}",
        soft_wrap=True,
    )
    return 0


def _cluster(options: SpaceOptions, address: str | None) -> Cluster:
    """The nodes to measure. Raises InputError."""
    if address is not None:
        refuse_address_by_form(address)
    if options.space is not None:
        cluster = space_from_options(options).cluster
    else:
        if address is not None and options.gpus_per_node is None:
            raise InputError("must be given with `address` or a `space`", field="gpus_per_node")
        device = _local_device() if options.gpu is None else device_of_option(options.gpu)
        if address is not None and options.gpu is None and device.kind == "cpu":
            raise InputError("must be given with `address` or a `space`", field="gpu")
        gpus = local_gpus() if device.kind == "gpu" else 1
        cluster = validated(
            Cluster,
            {
                "nodes": options.nodes or 1,
                "gpus_per_node": options.gpus_per_node or max(1, gpus),
                "device": device,
                "network": options.network and network_of_option(options.network),
            },
            what=None,
            names_field=True,
        )
    if address is None:
        cluster.check_this_machine()
        if cluster.devices > _MOST_VIRTUAL_DEVICES and cluster.device.kind == "cpu":
            raise InputError(
                f"nodes * gpus_per_node must be at most {_MOST_VIRTUAL_DEVICES} virtual devices of "
                f"one machine, got {cluster.devices}"
            )
    return cluster


def _local_device() -> Device:
    """The kind of device of this machine; which GPU it is, its nodes tell."""
    return unknown_gpu("gpu") if local_gpus() else device_named("cpu")


def _measure(
    cluster: Cluster,
    probed: Probed,
    *,
    address: str | None,
    env: Mapping[str, str],
    seconds: float,
    recognise: bool,
) -> tuple[Cluster, set[str]]:
    """Measure into `probed`. Returns the cluster with the device that it has, and its hosts."""
    # Imported here because Ray takes seconds to import: invalid input is reported before.
    from autotune.on_ray.connection import ray_cluster
    from autotune.on_ray.detected_cluster import device_of_nodes
    from autotune.on_ray.nodes import inspect_nodes
    from autotune.on_ray.one_job import run_on_nodes

    make_prober = describe_trainable(_TRAINABLE).make_prober
    assert make_prober is not None
    prober = make_prober(cluster.device.kind, env)
    with ray_cluster(cluster, address=address):
        nodes = inspect_nodes(cluster)
        device = cluster.device
        if recognise:
            device = device_of_nodes(device, nodes)
        missing = {kernel for node in nodes for kernel in node["missing_kernels"]}
        usable = tuple(kernel for kernel in device.attention_kernels if kernel not in missing)
        measured = dataclasses.replace(
            cluster, device=dataclasses.replace(device, attention_kernels=usable)
        )

        def receive(finding: Finding) -> None:
            probed.add(finding)

        run_on_nodes(
            measured,
            prober.host_factory,
            lambda hosts: prober.measure(measured, hosts, seconds=seconds),
            receive,
            title="probe",
        )
    return dataclasses.replace(cluster, device=device), {node["host"] for node in nodes}


def _remark(cluster: Cluster, hosts: set[str]) -> str:
    """What a reader of the network file must know of its nodes."""
    if cluster.nodes > 1 and len(hosts) == 1:
        return "; between virtual nodes of one machine, whose network is its memory"
    return ""


def _with_figures(device: Device, stated: Mapping[str, float | None]) -> Device:
    """The device with the figures that options state. Raises InputError."""
    given = {name: value for name, value in stated.items() if value is not None}
    fields = {field.name: getattr(device, field.name) for field in dataclasses.fields(device)}
    return validated(Device, {**fields, **given}, what="--gpu")


def _refuse_used(directory: Path) -> None:
    """Raise InputError where the directory holds anything, or cannot be made."""
    refuse_impossible_directory(directory)
    if directory.is_dir() and any(directory.iterdir()):
        raise InputError(f"must be empty or new, got {shown(directory)} with files in it")


def _write(out: Path, device: Device, network: Network) -> dict[str, Path]:
    """Write both files and return their paths. Raises InputError."""
    paths = {"device": out / _DEVICE_FILE, "network": out / _NETWORK_FILE}
    texts = {"device": device_to_json(device), "network": network_to_json(network)}
    with in_field("out"):
        _refuse_used(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, path in paths.items():
                write_atomically(path, functools.partial(_write_text, text=texts[name]))
        except OSError as error:
            raise InputError(f"cannot write into {shown(out)}: {error.strerror}") from None
    return paths


def _write_text(path: Path, *, text: str) -> None:
    path.write_text(text, "utf-8")


def _content(cluster: Cluster, probed: Probed, device: Device, network: Network) -> dict[str, Any]:
    return {
        "library": probed.library,
        "nodes": cluster.nodes,
        "devices_per_node": cluster.gpus_per_node,
        "facts": dict(probed.facts),
        "bandwidth_gb_per_second": probed.bandwidths,
        "matrix_products": probed.curves["matrix_products"],
        "attention": probed.attention,
        "collectives": probed.collectives,
        "lines": probed.lines(),
        "not_measured": probed.errors,
        "device": pydantic.TypeAdapter(Device).dump_python(device, mode="json"),
        "network": pydantic.TypeAdapter(Network).dump_python(network, mode="json"),
    }
