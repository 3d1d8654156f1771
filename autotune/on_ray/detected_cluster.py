"""What becomes of a request on the nodes that are really there. The screen says what changes."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from autotune.cost.setting import setting_of
from autotune.errors import InputError
from autotune.hardware import device_of_accelerator
from autotune.options.space_options import refuse_empty
from autotune.request import Request

Nodes = Sequence[Mapping[str, Any]]
"""Descriptions of nodes, as `autotune.on_ray.nodes.inspect_nodes` gives them."""

# What a step time depends on; our own code is not among it, nor which machine it is.
_SAME_CLUSTER = ("accelerator", "driver", "torch", "deepspeed", "python", "missing_kernels")


def fitted_to_nodes(console: Console, request: Request, nodes: Nodes) -> Request:
    """The request with the nodes' device, the kernels that are installed, and a search that is
    possible there. Raises InputError where nothing is left of it."""
    request = _with_actual_device(console, request, nodes)
    request = _with_installed_kernels(console, request, nodes)
    refuse_empty(request.space)
    return _with_possible_search(console, request)


def differences(directory: Path, nodes: Nodes) -> list[str]:
    """How the nodes differ from those that the run in `directory` was begun on."""
    before = json.loads((directory / "run.json").read_text(encoding="utf-8")).get("nodes")
    if not before or not nodes:
        return []
    if not isinstance(before, list) or not isinstance(before[0], dict):
        raise InputError(f"--resume: nodes in run.json must be a list of objects, got {before!r}")
    return [
        f"{what} was {before[0].get(what)}, is {nodes[0].get(what)}"
        for what in _SAME_CLUSTER
        if what in before[0] and before[0][what] != nodes[0].get(what)
    ]


def _with_actual_device(console: Console, request: Request, nodes: Nodes) -> Request:
    """Put the device that the nodes have in the place of the one that the space names."""
    cluster = request.space.cluster
    accelerator = nodes[0]["accelerator"]
    if accelerator is None or cluster.device.kind != "gpu":
        return request
    device = device_of_accelerator(accelerator)
    if device.name == cluster.device.name or accelerator in cluster.device.ray_accelerator_types:
        return request  # perhaps with constants of the user's own
    console.print(f"the nodes have {device.name}, not {cluster.device.name}", highlight=False)
    actual = dataclasses.replace(cluster, device=device)
    space = request.space.replaced({"cluster": actual}, what="cluster")
    return dataclasses.replace(request, space=space)


def _with_installed_kernels(console: Console, request: Request, nodes: Nodes) -> Request:
    """Leave out of the space the kernels that a node does not have, or cannot load."""
    kernels = request.space.attention_kernel
    usable = request.space.cluster.device.attention_kernels
    left = list(kernels)
    for node in nodes:
        for kernel, reason in node["missing_kernels"].items():
            if kernel not in left or kernel not in usable:
                continue
            if len(left) == 1:
                raise InputError(f"attention_kernel {kernel} {reason} on node {node['address']}")
            left.remove(kernel)
            console.print(
                f"{kernel} {reason} on node {node['address']}: left out",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )
    if len(left) == len(kernels):
        return request
    space = request.space.replaced({"attention_kernel": tuple(left)}, what="attention_kernel")
    return dataclasses.replace(request, space=space)


def _with_possible_search(console: Console, request: Request) -> Request:
    """Search without a cost model where the nodes' device is not known to it."""
    space = request.space
    if request.search != "guided":
        return request
    try:
        setting_of(space.model, space.precision, space.cluster)
    except InputError:
        console.print(
            f"{space.cluster.device.name} is not known to the cost model (describe it with --gpu "
            "FILE.json): searching with hyperopt",
            soft_wrap=True,
            highlight=False,
        )
        return dataclasses.replace(request, search="hyperopt")
    return request
