"""What is said where the cluster has no node of the kind that is needed."""

import pytest

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.on_ray import nodes as ray_nodes


def test_a_cluster_without_virtual_devices_is_told_how_to_start_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = {"Alive": True, "NodeID": "a", "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray_nodes.ray, "nodes", lambda: [plain])
    cpus = Cluster(nodes=1, gpus_per_node=2, device=device_named("cpu"))
    sentence = ray_nodes.missing_nodes(cpus)
    assert sentence is not None and sentence.startswith("needs 1 node of 2 virtual devices")
    assert """ray start --resources '{"virtual_device": 2}'""" in sentence
    gpus = Cluster(nodes=1, gpus_per_node=2, device=device_named("h100"))
    assert "ray start" not in str(ray_nodes.missing_nodes(gpus))
