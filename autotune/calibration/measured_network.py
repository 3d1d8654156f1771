"""Turns curves of collectives and exchanges into the figures of a network file.

The formulas are those of `autotune.cost.communication`. What a file states is what was reached: its
efficiencies are 1. Nothing is fitted to step times.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from autotune.cost.communication import START_SECONDS
from autotune.hardware import Measured, Network

_GB, _BITS = 1e9, 8
_LARGEST_BYTES_PER_SECOND = 1e15
# After what is known of a time is subtracted, at least this share of it is left.
_LEAST_SHARE = 0.1

# How often a collective goes round the ring.
ROUNDS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
"""The collectives that are measured, and how often each goes round its ring."""
AFTER_PRODUCTS = "all_reduce_after_products"
"""What an all-reduce adds to a matrix product before it."""
_ROUNDS = {**ROUNDS, AFTER_PRODUCTS: ROUNDS["all_reduce"]}

Curves = Mapping[str, Sequence[Mapping[str, float]]]
"""Points with ``ranks``, ``bytes`` and ``seconds``, by operation and place, as in ``all_reduce
within`` (`trainables.probe.collectives`)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """seconds = latency_seconds + bytes_moved / bytes_per_second."""

    latency_seconds: float
    bytes_per_second: float


def moved_bytes(operation: str, point: Mapping[str, float]) -> float:
    """What each rank sends: (n - 1) / n of the tensor per round of a ring; all of it to a peer."""
    ranks = point["ranks"]
    rounds = _ROUNDS.get(operation)
    return point["bytes"] * (1.0 if rounds is None else rounds * (ranks - 1) / ranks)


def fitted_line(operation: str, curve: Sequence[Mapping[str, float]]) -> Line:
    """The line through one curve, by least squares of the relative error."""
    moved = np.array([moved_bytes(operation, point) for point in curve])
    seconds = np.array([point["seconds"] for point in curve])
    latency, pace = _least_squares([np.ones(len(moved)), moved], seconds)
    return Line(latency_seconds=latency, bytes_per_second=_inverse(pace))


def measured_network(
    nominal: Network, curves: Curves, *, devices_per_node: int, source: str
) -> Network:
    """The network with what was measured in place of nominal figures.

    Where a place was not measured (one node, or one device per node), the nominal figures and their
    constants stay. `source` is that of every measured constant.
    """
    network, constants = nominal, dict(nominal.constants)

    def state(**values: float) -> None:
        for name, value in values.items():
            constants[name] = Measured(value=_rounded(value), kind="stated", source=source)

    link = None
    if "all_reduce within" in curves:
        link = _ring_within(curves)
        network = dataclasses.replace(
            network, link_gb_per_second=_rounded(link.bytes_per_second / _GB)
        )
        all_reduce = fitted_line(AFTER_PRODUCTS, curves[f"{AFTER_PRODUCTS} within"])
        state(
            link_efficiency=1.0,
            link_latency_seconds=all_reduce.latency_seconds,
            link_hop_seconds=link.latency_seconds,
        )
    place = "within"
    if "all_reduce between" in curves:
        place = "between"
        node = _ring_between(curves, link, devices_per_node)
        cards = nominal.nics_per_node or devices_per_node
        network = dataclasses.replace(
            network,
            nic_gbit_per_second=_rounded(node.bytes_per_second * _BITS / _GB / cards),
            oversubscription=1.0,
        )
        exchange = fitted_line("exchange", curves["exchange between"])
        state(
            network_efficiency=1.0,
            network_hop_seconds=node.latency_seconds,
            network_congestion=0.0,
            stage_efficiency=exchange.bytes_per_second * devices_per_node / node.bytes_per_second,
        )
    if f"exchange {place}" in curves:
        exchange = fitted_line("exchange", curves[f"exchange {place}"])
        state(stage_latency_seconds=exchange.latency_seconds)
    return dataclasses.replace(network, constants=constants)


def _ring_within(curves: Curves) -> Line:
    """Latency of a step, and bandwidth, of a ring on the links: one line for all collectives."""
    columns: list[tuple[float, float]] = []
    seconds = []
    for operation, rounds in ROUNDS.items():
        for point in curves[f"{operation} within"]:
            columns.append((rounds * (point["ranks"] - 1), moved_bytes(operation, point)))
            seconds.append(_without(point, rounds * START_SECONDS))
    hop, pace = _least_squares(np.array(columns).T, np.array(seconds))
    return Line(latency_seconds=hop, bytes_per_second=_inverse(pace))


def _ring_between(curves: Curves, link: Line | None, devices_per_node: int) -> Line:
    """Latency of a step to another node, and bandwidth of a node's network cards together.

    Rings with a rank in each node share its cards. The ring of all ranks has them to itself, and
    counts where they, not the links, limit it.
    """
    rings = _Rings(link, devices_per_node)
    rings.add(curves, "between", in_domain=1)
    between = rings.line()
    if "all_reduce all" not in curves or link is None:
        return between
    ranks = curves["all_reduce all"][0]["ranks"]
    in_domain = ranks / curves["all_reduce between"][0]["ranks"]
    if between.bytes_per_second * in_domain / devices_per_node >= link.bytes_per_second:
        return between
    rings.add(curves, "all", in_domain=in_domain)
    return rings.line()


class _Rings:
    """Points of rings between nodes, for one line through all of them."""

    def __init__(self, link: Line | None, devices_per_node: int) -> None:
        self._link_hop = 0.0 if link is None else link.latency_seconds
        self._devices_per_node = devices_per_node
        self._columns: list[tuple[float, float]] = []
        self._seconds: list[float] = []

    def add(self, curves: Curves, where: str, *, in_domain: float) -> None:
        """Add the rings that have so many ranks in each domain."""
        share = in_domain / self._devices_per_node
        for operation, rounds in ROUNDS.items():
            for point in curves[f"{operation} {where}"]:
                domains = point["ranks"] / in_domain
                known = START_SECONDS + (point["ranks"] - domains) * self._link_hop
                self._columns.append(
                    (rounds * (domains - 1), moved_bytes(operation, point) / share)
                )
                self._seconds.append(_without(point, rounds * known))

    def line(self) -> Line:
        hop, pace = _least_squares(np.array(self._columns).T, np.array(self._seconds))
        return Line(latency_seconds=hop, bytes_per_second=_inverse(pace))


def _without(point: Mapping[str, float], known_seconds: float) -> float:
    return max(point["seconds"] - known_seconds, _LEAST_SHARE * point["seconds"])


def _least_squares(columns: Any, seconds: Any) -> tuple[float, float]:
    """Factors of two columns, not negative, with the least sum of squared relative errors."""
    matrix = np.array(columns).T / seconds[:, None]
    scale = np.maximum(matrix.max(axis=0), np.finfo(float).tiny)
    factors, _ = optimize.nnls(matrix / scale, np.ones(len(seconds)))
    first, second = factors / scale
    return float(first), float(second)


def _inverse(pace: float) -> float:
    """Bytes per second; a time that does not grow with the size says only that it is fast."""
    return min(1 / pace, _LARGEST_BYTES_PER_SECOND) if pace > 0 else _LARGEST_BYTES_PER_SECOND


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
