"""On a real Ray cluster that declares GPUs (there are none): each rank gets a different device."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.ledger.ledger import Ledger
from autotune.named_spaces import load_space
from autotune.on_ray.tuner import run_trials
from autotune.trial.trainable import RankHost
from autotune.trial.trial import Outcome
from tests.autotune.simulate import Silent, new_store
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.launch import DeepSpeedLlm

GPUS_PER_NODE = 4


class Reporting(DeepSpeedLlm):
    """The real trainable; its ranks only report their device."""

    def __init__(self, reports: Path) -> None:
        super().__init__(device_kind="gpu")
        self._reports = reports

    @property
    def host_factory(self) -> Callable[..., RankHost]:
        return functools.partial(
            LocalHost,
            device_kind="gpu",
            env={"REPORTS": str(self._reports)},
            program="tests.trainables.reporting_host",
        )

    def check(self, cluster: Cluster, hosts: Sequence[RankHost]) -> None:
        """Nothing: there are no such GPUs."""


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)  # that of this process, for other tests
    gpus = {"num_cpus": 3, "num_gpus": GPUS_PER_NODE}
    nodes = RayNodes(
        initialize_head=True,
        head_node_args={**gpus, "include_dashboard": False, "dashboard_port": None},
    )
    nodes.add_node(**gpus)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.timeout(180)
def test_local_ranks_count_the_devices_that_ray_made_visible(
    two_nodes: RayNodes, tmp_path: Path
) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    cluster = Cluster(nodes=2, gpus_per_node=GPUS_PER_NODE, device=device_named("h100"))
    space = load_space("tiny").replaced({"cluster": cluster, "tensor_parallel": (1,)}, what="test")
    store = new_store(tmp_path / "run", space=space, max_trials=1)
    run_trials(Ledger(store, Silent()), Reporting(reports))
    assert {record.outcome for record in store.trials()} == {Outcome.OK}
    found = [json.loads((reports / f"{rank}.json").read_text()) for rank in range(8)]
    for rank, report in enumerate(found):
        local_rank = rank % GPUS_PER_NODE
        assert report["place"] == [rank, local_rank, 8]
        assert (report["RANK"], report["LOCAL_RANK"]) == (str(rank), str(local_rank))
        visible = report["CUDA_VISIBLE_DEVICES"].split(",")
        # cuda:LOCAL_RANK is the device at that index: there is one for each rank of the node.
        assert len(set(visible)) == GPUS_PER_NODE == int(report["LOCAL_WORLD_SIZE"])
        assert report["DS_ACCELERATOR"] == "cuda"
