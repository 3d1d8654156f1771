"""Curves of collectives that follow the cost model's formulas give back the network behind them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from autotune.calibration.measured_network import (
    AFTER_PRODUCTS,
    ROUNDS,
    Curves,
    fitted_line,
    measured_network,
    moved_bytes,
)
from autotune.cost.communication import START_SECONDS
from autotune.hardware import Network, network_named

SIZES = (2**12, 2**16, 2**20, 2**24, 2**28)
LINK, LINK_HOP = 100e9, 5e-6
STAGE, STAGE_LATENCY = 20e9, 1e-4
NETWORK_HOP = 3e-5
LATE = 2e-5  # what ranks wait for each other after a product
TWO_NODES_OF_EIGHT = {"within": (8, 1), "between": (2, 2), "all": (16, 2)}


def curves(places: Mapping[str, tuple[int, int]], *, node: float, devices: int = 8) -> Curves:
    """Curves of rings, by ranks and domains, over cards of `node` bytes per second."""
    found: dict[str, list[dict[str, Any]]] = {}
    for where, (ranks, domains) in places.items():
        network = node * ranks / domains / devices
        speed = LINK if domains == 1 else min(network, LINK)
        hops = (domains - 1) * NETWORK_HOP + (ranks - domains) * LINK_HOP
        for operation, rounds in ROUNDS.items():
            found[f"{operation} {where}"] = [
                {
                    "ranks": ranks,
                    "bytes": size,
                    "seconds": rounds * (START_SECONDS + hops + (ranks - 1) / ranks * size / speed),
                }
                for size in SIZES
            ]
        if where == "within":
            found[f"{AFTER_PRODUCTS} within"] = [
                {**point, "seconds": point["seconds"] + LATE}
                for point in found["all_reduce within"]
            ]
        if where != "all":
            found[f"exchange {where}"] = [
                {"ranks": 2, "bytes": size, "seconds": STAGE_LATENCY + size / STAGE}
                for size in SIZES
            ]
    return found


def values(network: Network) -> dict[str, float]:
    return {name: constant.value for name, constant in network.constants.items()}


def test_an_exact_line_gives_back_latency_and_bandwidth() -> None:
    curve = [{"ranks": 4, "bytes": n, "seconds": 2e-5 + 1.5 * n / 40e9} for n in SIZES]
    line = fitted_line("all_reduce", curve)
    assert line.latency_seconds == pytest.approx(2e-5)
    assert line.bytes_per_second == pytest.approx(40e9)


@pytest.mark.parametrize(
    ("operation", "share"),
    [
        ("all_reduce", 1.5),
        (AFTER_PRODUCTS, 1.5),
        ("all_gather", 0.75),
        ("reduce_scatter", 0.75),
        ("exchange", 1.0),
    ],
)
def test_what_a_rank_sends(operation: str, share: float) -> None:
    assert moved_bytes(operation, {"ranks": 4, "bytes": 1000}) == 1000 * share


def test_noise_never_gives_a_negative_figure() -> None:
    falling = [{"ranks": 2, "bytes": n, "seconds": 1e-3 - 1e-12 * n} for n in SIZES]
    line = fitted_line("all_gather", falling)
    assert line.latency_seconds > 0 and line.bytes_per_second > 0
    steep = [{"ranks": 2, "bytes": n, "seconds": n**1.5 / 1e12} for n in SIZES]
    line = fitted_line("all_gather", steep)
    assert line.latency_seconds >= 0 and line.bytes_per_second > 0


def test_the_network_behind_the_curves_is_found() -> None:
    nominal = network_named("dgx-h100")
    measured = curves(TWO_NODES_OF_EIGHT, node=80e9)
    found = measured_network(nominal, measured, devices_per_node=8, source="a test")
    assert found.link_gb_per_second == pytest.approx(100, rel=1e-3)
    assert found.node_gb_per_second(8) == pytest.approx(80, rel=1e-3)
    assert values(found) == pytest.approx(
        {
            "link_efficiency": 1,
            "link_latency_seconds": LATE + 2 * (START_SECONDS + 7 * LINK_HOP),
            "link_hop_seconds": LINK_HOP,
            "network_efficiency": 1,
            "network_hop_seconds": NETWORK_HOP,
            "network_congestion": 0,
            "stage_efficiency": 2,  # 20 GB/s of the 10 GB/s per device
            "stage_latency_seconds": STAGE_LATENCY,
        },
        rel=1e-3,
    )
    assert {constant.kind for constant in found.constants.values()} == {"stated"}
    assert {constant.source for constant in found.constants.values()} == {"a test"}


def test_a_ring_that_the_links_limit_says_nothing_about_the_cards() -> None:
    measured = curves(TWO_NODES_OF_EIGHT, node=400e9)
    found = measured_network(
        network_named("dgx-h100"), measured, devices_per_node=8, source="a test"
    )
    assert found.node_gb_per_second(8) == pytest.approx(400, rel=1e-3)


def test_shared_and_oversubscribed_cards() -> None:
    nominal = dataclasses.replace(network_named("hgx-h100-1nic"), oversubscription=2.0)
    measured = curves(TWO_NODES_OF_EIGHT, node=20e9)
    found = measured_network(nominal, measured, devices_per_node=8, source="a test")
    assert (found.nics_per_node, found.oversubscription) == (1, 1)
    assert found.nic_gbit_per_second == pytest.approx(160, rel=1e-3)


def test_what_was_not_measured_stays_nominal() -> None:
    nominal = network_named("hagemann2023")
    one_node = measured_network(
        nominal, curves({"within": (8, 1)}, node=1e9), devices_per_node=8, source="a test"
    )
    assert one_node.link_gb_per_second == pytest.approx(100, rel=1e-3)
    assert one_node.nic_gbit_per_second == nominal.nic_gbit_per_second
    for name in ("network_efficiency", "network_congestion", "stage_efficiency"):
        assert one_node.constants[name] == nominal.constants[name]
    one_device = measured_network(
        nominal,
        curves({"between": (4, 4)}, node=10e9, devices=1),
        devices_per_node=1,
        source="a test",
    )
    assert one_device.link_gb_per_second == nominal.link_gb_per_second
    assert one_device.constants["link_efficiency"] == nominal.constants["link_efficiency"]
    assert one_device.node_gb_per_second(1) == pytest.approx(10, rel=1e-3)
    nothing = measured_network(nominal, {}, devices_per_node=1, source="a test")
    assert nothing == nominal
