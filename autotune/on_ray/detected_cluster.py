"""Adapts a request to the detected nodes: their device, installed kernels and a usable search."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.cost.setting import setting_of
from autotune.cost.trainers import trainer_of
from autotune.errors import InputError
from autotune.hardware import Device, device_of_accelerator
from autotune.inputs import shown
from autotune.request import Request
from autotune.search import NEED_PRIOR, WITHOUT_PRIOR

Nodes = Sequence[Mapping[str, Any]]
"""Descriptions of nodes, as `autotune.on_ray.nodes.inspect_nodes` gives them."""

# Properties of a node that step times depend on; the project's code and the host are left out.
_SAME_CLUSTER = ("accelerator", "driver", "torch", "deepspeed", "python", "missing_kernels")


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """A request adapted to the nodes."""

    request: Request
    changes: tuple[str, ...] = ()
    """The changes, one sentence each."""

    def changed(self, request: Request, *sentences: str) -> "Fitted":
        """A copy with another request; `sentences` say what changed."""
        return Fitted(request, (*self.changes, *sentences))


def fitted_to_nodes(request: Request, nodes: Nodes) -> Fitted:
    """The request with the nodes' device, only installed kernels, and a search that can run on the
    device. Raises InputError where no layout is left."""
    fitted = _with_installed_kernels(_with_actual_device(Fitted(request), nodes), nodes)
    fitted.request.space.check_not_empty()
    return _with_usable_search(fitted)


def differences(before: Nodes, nodes: Nodes) -> list[str]:
    """How the nodes differ from those that the search was begun on."""
    if not before or not nodes:
        return []
    return [
        f"{what} was {shown(before[0][what])}, is {shown(nodes[0].get(what))}"
        for what in _SAME_CLUSTER
        if what in before[0] and before[0][what] != nodes[0].get(what)
    ]


def device_of_nodes(device: Device, nodes: Nodes) -> Device:
    """The device that the nodes have: the given one, where it describes it."""
    accelerator = nodes[0]["accelerator"]
    if accelerator is None or device.kind != "gpu":
        return device
    actual = device_of_accelerator(accelerator)
    if actual.name == device.name or accelerator in device.ray_accelerator_types:
        return device  # keeps constants of the user's hardware file
    return actual


def _with_actual_device(fitted: Fitted, nodes: Nodes) -> Fitted:
    """Replace the device of the space by that of the nodes."""
    request = fitted.request
    cluster = request.space.cluster
    device = device_of_nodes(cluster.device, nodes)
    if device is cluster.device:
        return fitted
    actual = dataclasses.replace(cluster, device=device)
    space = request.space.replaced({"cluster": actual}, what="cluster")
    return fitted.changed(
        dataclasses.replace(request, space=space),
        f"the nodes have {device.name}, not {cluster.device.name}",
    )


def _with_installed_kernels(fitted: Fitted, nodes: Nodes) -> Fitted:
    """Remove from the space the attention kernels that a node lacks or cannot import."""
    request = fitted.request
    kernels = request.space.attention_kernel
    usable = request.space.cluster.device.attention_kernels
    kept, changes = list(kernels), []
    for node in nodes:
        for kernel, reason in node["missing_kernels"].items():
            if kernel not in kept or kernel not in usable:
                continue
            if len(kept) == 1:
                raise InputError(f"attention_kernel {kernel} {reason} on node {node['address']}")
            kept.remove(kernel)
            changes.append(f"{kernel} {reason} on node {node['address']}: left out")
    if not changes:
        return fitted
    space = request.space.replaced({"attention_kernel": tuple(kept)}, what="attention_kernel")
    return fitted.changed(dataclasses.replace(request, space=space), *changes)


def _with_usable_search(fitted: Fitted) -> Fitted:
    """Replace the guided search by hyperopt where the cost model does not know the device."""
    request, space = fitted.request, fitted.request.space
    if request.search not in NEED_PRIOR:
        return fitted
    try:
        setting_of(
            space.model, space.precision, space.cluster, trainer_of(request.description.trainer)
        )
    except InputError:
        return fitted.changed(
            dataclasses.replace(request, search=WITHOUT_PRIOR),
            f"{space.cluster.device.name} is not known to the cost model (a hardware file "
            f"describes it): searching with {WITHOUT_PRIOR}",
        )
    return fitted
