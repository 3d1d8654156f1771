"""The head of a cluster (Ray's GCS) is killed: the search's own, and that of another cluster."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from autotune.on_ray.ray_internals import RayNodes
from tests.autotune.test_run import family_of, wait_until_gone
from tests.faults.conftest import Row
from tests.faults.test_driver import finished, rows, run_to_the_end, started, wait_for

pytestmark = [pytest.mark.timeout(300)]

SIMULATED = ("--space", "llm13b", "--nodes", "2", "--search", "random", "--max-trials", "300")
REAL = ("--space", "tiny", "--nodes", "1", "--search", "random")
GCS = "gcs_server"


def kill_head(parent: psutil.Process) -> None:
    for process in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == GCS:
                process.kill()


@contextlib.contextmanager
def cluster_of_one_node() -> Iterator[str]:
    """The address of a Ray that does not belong to the search."""
    node = {"num_cpus": 3, "resources": {"virtual_device": 2.0}}
    nodes = RayNodes(
        initialize_head=True,
        head_node_args={**node, "include_dashboard": False, "dashboard_port": None},
    )
    try:
        yield nodes.address
    finally:
        for node in nodes.list_all_nodes():
            nodes.remove_node(node, allow_graceful=False)


@pytest.mark.parametrize(
    "of_its_own", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["own", "cluster"]
)
def test_a_search_whose_head_is_killed_ends_in_one_sentence_and_goes_on(
    of_its_own: bool, tmp_path: Path, row: Callable[[Row], None]
) -> None:
    directory = tmp_path / "run"
    with contextlib.ExitStack() as stack:
        arguments = SIMULATED
        if not of_its_own:
            arguments = (*REAL, "--address", stack.enter_context(cluster_of_one_node()))
        search = started(*arguments, "--out", directory)
        wait_for(lambda: finished(directory) >= 2, search)
        family = family_of(search.pid)
        kill_head(psutil.Process(search.pid) if of_its_own else psutil.Process())
        killed_at = time.monotonic()
        output, _ = search.communicate(timeout=100)
        seconds = time.monotonic() - killed_at
        assert search.returncode == 130, output
        last = output.splitlines()[-1]
        assert last.startswith("the head of the Ray cluster at "), output
        assert last.endswith(f" is gone; continue with --resume {directory}"), output
        assert "Traceback" not in output and " E " not in output
        wait_until_gone(family)
    kept = rows(directory)
    assert len(kept) >= 2 and {row["outcome"] for row in kept} <= {"ok", "oom"}
    if of_its_own:
        whose = "started by the search"
        status, output = run_to_the_end("--resume", directory, "--gpu-hours", "0.001")
        assert status == 0 and "gpu_hours spent" in output and rows(directory) == kept, output
    else:
        whose = "of a cluster"
    fault = f"Ray's head ({whose}) is killed"
    row(Row(fault=fault, recorded="one sentence, status 130; resumed", seconds=seconds))
