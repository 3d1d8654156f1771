"""Fit a request to the nodes that were detected: their device, their kernels, a possible search."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.cost.setting import setting_of
from autotune.errors import InputError
from autotune.hardware import device_of_accelerator
from autotune.request import Request

Nodes = Sequence[Mapping[str, Any]]
"""Descriptions of nodes, as `autotune.on_ray.nodes.inspect_nodes` gives them."""

# What a step time depends on; our own code is not among it, nor which machine it is.
_SAME_CLUSTER = ("accelerator", "driver", "torch", "deepspeed", "python", "missing_kernels")


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """A request that can be run on the nodes."""

    request: Request
    changes: tuple[str, ...] = ()
    """What was changed, a sentence each."""

    def changed(self, request: Request, *sentences: str) -> "Fitted":
        """With another request, and why."""
        return Fitted(request, (*self.changes, *sentences))


def fitted_to_nodes(request: Request, nodes: Nodes) -> Fitted:
    """The request with the nodes' device, the kernels that are installed, and a search that is
    possible there. Raises InputError where nothing is left of it."""
    fitted = _with_installed_kernels(_with_actual_device(Fitted(request), nodes), nodes)
    fitted.request.space.check_not_empty()
    return _with_possible_search(fitted)


def differences(directory: Path, nodes: Nodes) -> list[str]:
    """How the nodes differ from those that the run in `directory` was begun on."""
    before = json.loads((directory / "run.json").read_text(encoding="utf-8")).get("nodes")
    if not before or not nodes:
        return []
    if not isinstance(before, list) or not isinstance(before[0], dict):
        raise InputError(f"nodes in run.json must be a list of objects, got {before!r}")
    return [
        f"{what} was {before[0].get(what)}, is {nodes[0].get(what)}"
        for what in _SAME_CLUSTER
        if what in before[0] and before[0][what] != nodes[0].get(what)
    ]


def _with_actual_device(fitted: Fitted, nodes: Nodes) -> Fitted:
    """Put the device that the nodes have in the place of the one that the space names."""
    request = fitted.request
    cluster = request.space.cluster
    accelerator = nodes[0]["accelerator"]
    if accelerator is None or cluster.device.kind != "gpu":
        return fitted
    device = device_of_accelerator(accelerator)
    if device.name == cluster.device.name or accelerator in cluster.device.ray_accelerator_types:
        return fitted  # perhaps with constants of the user's own
    actual = dataclasses.replace(cluster, device=device)
    space = request.space.replaced({"cluster": actual}, what="cluster")
    return fitted.changed(
        dataclasses.replace(request, space=space),
        f"the nodes have {device.name}, not {cluster.device.name}",
    )


def _with_installed_kernels(fitted: Fitted, nodes: Nodes) -> Fitted:
    """Leave out of the space the kernels that a node does not have, or cannot load."""
    request = fitted.request
    kernels = request.space.attention_kernel
    usable = request.space.cluster.device.attention_kernels
    left, changes = list(kernels), []
    for node in nodes:
        for kernel, reason in node["missing_kernels"].items():
            if kernel not in left or kernel not in usable:
                continue
            if len(left) == 1:
                raise InputError(f"attention_kernel {kernel} {reason} on node {node['address']}")
            left.remove(kernel)
            changes.append(f"{kernel} {reason} on node {node['address']}: left out")
    if not changes:
        return fitted
    space = request.space.replaced({"attention_kernel": tuple(left)}, what="attention_kernel")
    return fitted.changed(dataclasses.replace(request, space=space), *changes)


def _with_possible_search(fitted: Fitted) -> Fitted:
    """Search without a cost model where the nodes' device is not known to it."""
    request, space = fitted.request, fitted.request.space
    if request.search != "guided":
        return fitted
    try:
        setting_of(space.model, space.precision, space.cluster)
    except InputError:
        return fitted.changed(
            dataclasses.replace(request, search="hyperopt"),
            f"{space.cluster.device.name} is not known to the cost model (a hardware file "
            "describes it): searching with hyperopt",
        )
    return fitted
