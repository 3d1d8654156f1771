"""One Ray cluster for the folder: starting it takes ten seconds."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes


@pytest.fixture(scope="package")
def made_up_nodes() -> Iterator[RayNodes]:
    """Three nodes, each of eight (made-up) GPUs and two virtual devices."""
    both = {"num_gpus": 8, "resources": {"virtual_device": 2}}
    nodes = RayNodes(
        initialize_head=True,
        head_node_args={**both, "num_cpus": 4, "include_dashboard": False, "dashboard_port": None},
    )
    for _ in range(2):
        nodes.add_node(**both, num_cpus=2)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    yield nodes
    ray.shutdown()
    nodes.shutdown()
