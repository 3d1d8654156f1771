"""Three nodes of two devices: which of them count, what is missing, and how to go around one."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes
from ray.util.placement_group import PlacementGroup, placement_group_table

from autotune.cluster import Cluster
from autotune.errors import NodeCheckFailed, NodeLost
from autotune.hardware import device_named, local_devices
from autotune.on_ray.nodes import (
    NODE_CPUS,
    VIRTUAL_DEVICE,
    compare_nodes,
    describe_this_node,
    missing_nodes,
    whole_nodes,
)
from autotune.on_ray.placement import MOST_VIRTUAL_BUNDLES, NodeGroup, node_group
from tests.autotune.on_ray.test_placement import lose
from trainables.fake import FakeHost

pytestmark = [pytest.mark.timeout(180)]


def cpu_nodes(count: int, devices: int = 2) -> Cluster:
    return Cluster(nodes=count, gpus_per_node=devices, device=device_named("cpu"))


def node_ids() -> list[str]:
    return [node["NodeID"] for node in whole_nodes(cpu_nodes(3))]


def group_of(nodes: int, avoid: Sequence[str]) -> PlacementGroup:
    request = node_group(cpu_nodes(nodes), 2 * nodes, title="test", avoid=avoid)
    group = request.to_placement_group()
    assert isinstance(group, PlacementGroup)
    return group


@pytest.mark.parametrize("avoided", range(3))
def test_a_group_goes_around_a_node(made_up_nodes: RayNodes, avoided: int) -> None:
    avoid = [node_ids()[avoided]]
    assert missing_nodes(cpu_nodes(2), avoid=avoid) is None
    group = group_of(2, avoid)
    try:
        assert group.wait(30)
        _, *used = placement_group_table(group)["bundles_to_node_id"].values()
        assert set(used) == set(node_ids()) - set(avoid)
    finally:
        ray.util.remove_placement_group(group)


@pytest.mark.parametrize("nodes", [MOST_VIRTUAL_BUNDLES, MOST_VIRTUAL_BUNDLES + 1, 16_384])
def test_of_virtual_nodes_every_device_is_reserved_in_few_bundles(nodes: int) -> None:
    cluster = Cluster(nodes=nodes, gpus_per_node=8, device=device_named("a100-80gb"))
    virtual = node_group(cluster, cluster.devices, title="test", virtual=True)
    _, *bundles = virtual.bundles
    assert sum(bundle[VIRTUAL_DEVICE] for bundle in bundles) == cluster.devices
    assert sum(bundle["CPU"] for bundle in bundles) == nodes * NODE_CPUS
    assert len(bundles) == (nodes if nodes <= MOST_VIRTUAL_BUNDLES else 1)
    real = node_group(cluster, cluster.devices, title="test")
    assert len(real.bundles) == 1 + nodes, "real nodes are placed one by one"


def test_a_node_group_knows_its_nodes(made_up_nodes: RayNodes) -> None:
    avoid = node_ids()[:1]
    group = group_of(2, avoid)
    nodes = NodeGroup(group, cpu_nodes(2), FakeHost, title="test")
    try:
        assert {name["node_id"] for name in nodes.names} == set(node_ids()[1:])
        assert [host.listen()[0] for host in nodes.hosts] == [n["address"] for n in nodes.names]
    finally:
        nodes.close()
        ray.util.remove_placement_group(group)


def test_a_lost_node_is_asked_once(made_up_nodes: RayNodes) -> None:
    group = group_of(2, ())
    nodes = NodeGroup(group, cpu_nodes(2), FakeHost, title="test")
    try:
        with pytest.raises(NodeLost, match=r"node 1 \(.*\): "):
            lose(nodes.hosts[1])
        with pytest.raises(NodeLost, match="was lost before"):
            nodes.hosts[1].stop()
        assert nodes.hosts[0].events(0.0) == []
    finally:
        nodes.close()
        ray.util.remove_placement_group(group)


def test_missing_nodes_are_told_with_both_numbers(made_up_nodes: RayNodes) -> None:
    assert missing_nodes(cpu_nodes(3)) is None
    assert missing_nodes(cpu_nodes(9), world_size=5) is None
    needs = "needs 4 nodes of 2 virtual devices, the cluster has 3 nodes of 2"
    assert missing_nodes(cpu_nodes(4)) == needs
    assert missing_nodes(cpu_nodes(9), world_size=7) == needs
    avoiding = missing_nodes(cpu_nodes(3), avoid=node_ids()[:1])
    assert avoiding is not None and "3 nodes of 2 (1 of them to be avoided)" in avoiding


def test_a_node_that_went_away_is_missing(made_up_nodes: RayNodes) -> None:
    extra = made_up_nodes.add_node(num_cpus=2, resources={"virtual_device": 2})
    assert missing_nodes(cpu_nodes(4)) is None
    made_up_nodes.remove_node(extra)
    assert missing_nodes(cpu_nodes(4)) is not None
    assert missing_nodes(cpu_nodes(3)) is None


def test_a_node_with_other_versions_is_named() -> None:
    software = describe_this_node()
    node = {**software, "address": "10.0.0.1", "accelerator": "H100"}
    other = {**node, "address": "10.0.0.2", "torch": "1.0"}
    compare_nodes([node, dict(node)])
    with pytest.raises(NodeCheckFailed, match=r"node 10\.0\.0\.2: torch must be the same"):
        compare_nodes([node, other])


@pytest.mark.parametrize(
    ("files", "gpus"),
    [
        ([], 0),
        (["proc/0000:01:00.0", "proc/0000:02:00.0"], 2),
        (["dev/nvidia0", "dev/nvidia1", "dev/nvidiactl", "dev/nvidia-uvm"], 2),
        (["proc/0000:01:00.0", "dev/nvidia0"], 1),
    ],
)
def test_gpus_are_counted_where_the_driver_or_the_devices_show_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], gpus: int
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    seen = ((str(tmp_path / "proc"), "*"), (str(tmp_path / "dev"), "nvidia[0-9]*"))
    monkeypatch.setattr(local_devices, "_WHERE_GPUS_ARE_SEEN", seen)
    assert local_devices.local_gpus() == gpus
