"""What a probe measured, and the two hardware files that follow from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from autotune.calibration.measured_device import completed, measured_device
from autotune.calibration.measured_network import (
    fitted_line,
    measured_network,
    moved_bytes,
)
from autotune.cluster import Cluster
from autotune.errors import NodeCheckFailed
from autotune.hardware import Device, Network
from autotune.trial.trainable import Finding

NETWORK_NAME = "measured"
"""Name of every network that a probe describes."""

_ATTENTION = "attention "
_NEEDED = ("bandwidth", "matrix_products")
_GB = 1e9


class Probed:
    """The curves of one probe, as they come in."""

    def __init__(self) -> None:
        self.curves: dict[str, list[dict[str, Any]]] = {}
        """Points by curve (`autotune.trial.trainable.Finding`)."""
        self.errors: dict[str, str] = {}
        """Why a curve could not be measured any further."""

    def add(self, finding: Finding) -> None:
        """Take a point."""
        if "error" in finding.point:
            self.errors[finding.curve] = str(finding.point["error"])
        else:
            self.curves.setdefault(finding.curve, []).append(dict(finding.point))

    @property
    def facts(self) -> Mapping[str, Any]:
        """Names and versions of device and libraries."""
        return self.curves["facts"][0]

    @property
    def library(self) -> str:
        """The library of the collectives, with its version."""
        return str(self.facts["library"])

    @property
    def collectives(self) -> dict[str, list[dict[str, Any]]]:
        """The curves between ranks, by size of the tensor, with what each rank sends."""
        return {
            name: [
                {
                    **point,
                    "gb_per_second": moved_bytes(_operation(name), point) / point["seconds"] / _GB,
                }
                for point in sorted(curve, key=lambda point: point["bytes"])
            ]
            for name, curve in self.curves.items()
            if "bytes" in curve[0]
        }

    @property
    def attention(self) -> dict[str, list[dict[str, Any]]]:
        """Curves of attention, by kernel."""
        return {
            name.removeprefix(_ATTENTION): curve
            for name, curve in self.curves.items()
            if name.startswith(_ATTENTION)
        }

    @property
    def bandwidths(self) -> dict[str, float]:
        """Memory bandwidth in GB/s, by operation."""
        return {point["operation"]: point["gb_per_second"] for point in self.curves["bandwidth"]}

    def lines(self) -> dict[str, dict[str, float]]:
        """Latency and bandwidth of each curve between ranks."""
        return {
            name: dataclasses.asdict(fitted_line(_operation(name), curve))
            for name, curve in self.collectives.items()
        }

    def device(self, stated: Device, source: str) -> Device:
        """The device with what was measured. Raises NodeCheckFailed where too little was."""
        incomplete = [c for c in _NEEDED if c not in self.curves or c in self.errors]
        if incomplete:
            reason = self.errors.get(incomplete[0], "no point was measured")
            raise NodeCheckFailed(f"{incomplete[0]} could not be measured: {reason}")
        products = self.curves["matrix_products"]
        device = completed(stated, self.facts, products)
        total, context = self.facts["total_memory_gib"], self.facts["context_gib"]
        curves = {
            "matrix_products": products,
            "bandwidth": self.bandwidths,
            "attention": self.attention,
            "overheads": {
                "context_gib": context,
                "usable_memory": total and device.memory_gib and total / device.memory_gib,
            },
        }
        device = measured_device(device, curves, source)
        return dataclasses.replace(device, source=f"{device.source}; {source}")

    def network(self, cluster: Cluster, source: str) -> Network:
        """The cluster's network with what was measured."""
        nominal = cluster.links
        network = measured_network(
            nominal, self.collectives, devices_per_node=cluster.gpus_per_node, source=source
        )
        return dataclasses.replace(
            network,
            name=NETWORK_NAME,
            source=f"{source}; what was not measured is that of {nominal.name}",
        )


def _operation(curve: str) -> str:
    return curve.partition(" ")[0]
