"""A rank fills its node's main memory: Ray's memory monitor kills the node's actor."""

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes

from autotune.ledger.ledger import Ledger
from autotune.on_ray.tuner import run_trials
from autotune.trial.trial import Outcome
from tests.autotune.simulate import Silent, new_store
from tests.faults.conftest import Row
from tests.faults.faulty import FaultyDeepSpeedLlm
from tests.faults.test_ranks import request_of

# The monitor also counts the memory of all other processes on this machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

_ROOM_GIB = 1.5


def test_the_layout_is_out_of_memory_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Callable[[Row], None]
) -> None:
    # All raylets of a machine monitor the same memory: enable only one monitor.
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    nodes = RayNodes(
        initialize_head=True,
        head_node_args={
            **{"num_cpus": 2, "include_dashboard": False, "dashboard_port": None},
            "resources": {"virtual_device": 1.0},
        },
    )
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    try:
        memory = psutil.virtual_memory()
        used = memory.total - memory.available + _ROOM_GIB * 2**30
        monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
        monkeypatch.setenv("RAY_memory_usage_threshold", f"{used / memory.total:.4f}")
        nodes.add_node(num_cpus=2, resources={"virtual_device": 1.0})
        os.environ.pop("RAY_memory_usage_threshold")
        ledger = Ledger(new_store(tmp_path / "run", **request_of(3)), Silent())
        faults = {"0002": "eats the node's memory"}
        run_trials(ledger, FaultyDeepSpeedLlm(faults, tmp_path / "notes"))
    finally:
        ray.shutdown()
        nodes.shutdown()
    by_id = {r.trial_id: r for r in ledger.records}
    record = by_id["0002"]
    assert record.outcome is Outcome.OOM, record.reason
    assert "low on memory" in record.reason
    assert by_id["0001"].outcome is by_id["0003"].outcome is Outcome.OK
    row(
        Row(fault="Ray's memory monitor ends a node's actor", recorded=f"oom: {record.reason[:60]}")
    )
