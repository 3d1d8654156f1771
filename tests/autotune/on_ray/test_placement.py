"""Real Ray clusters of fake GPUs: whole nodes are reserved, and given back."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes
from ray.util import placement_group_table

from autotune.cluster import Cluster
from autotune.errors import ClusterTooSmall, NodeCheckFailed
from autotune.hardware import device_named
from autotune.ledger.ledger import Ledger
from autotune.named_spaces import load_space
from autotune.on_ray import nodes as ray_nodes
from autotune.on_ray.tuner import run_trials
from autotune.trial.trial import Ended, StepReport, TrialSpec
from tests.autotune.simulate import Silent, new_store
from trainables.fake import FakeHost, FakeTrainable

pytestmark = [pytest.mark.timeout(180)]


def gpu_space(nodes: int, **changes: object) -> dict[str, object]:
    tiny = load_space("tiny")
    fields = {
        "cluster": Cluster(nodes=nodes, gpus_per_node=8, device=device_named("a100-80gb")),
        "tensor_parallel": (1, 2, 4),
        "zero_stage": (1,),
        "attention_kernel": ("math",),
    }
    model = {"global_batch_size": 32}
    space = tiny.replaced(
        {**fields, "model": dataclasses.replace(tiny.model, **model)}, what="test"
    )
    return {"space": space, **changes}


def lose(host: Any) -> None:
    """Kill the host's actor, and raise what a trial then meets."""
    ray.kill(host._actor)
    while True:
        host.events(0.1)


class Watching(FakeTrainable):
    """Writes down which GPUs are free while each trial runs."""

    def __init__(self, notes: Path) -> None:
        super().__init__()
        self._notes = notes

    def run(self, spec: TrialSpec, hosts: object) -> Iterator[StepReport | Ended]:
        free = {
            node["NodeID"]: ray._private.state.available_resources_per_node()
            .get(node["NodeID"], {})
            .get("GPU", 0.0)
            for node in ray.nodes()
            if node["Alive"]
        }
        with self._notes.open("a") as notes:
            notes.write(f"{sorted(free.values())} {len(hosts)} {id(self)}\n")
        yield from super().run(spec, hosts)


def alive_actors() -> list[str]:
    actors = ray._private.state.actors().values()
    return [actor["ActorClassName"] for actor in actors if actor["State"] == "ALIVE"]


def live_groups() -> list[str]:
    return [g["state"] for g in placement_group_table().values() if g["state"] != "REMOVED"]


def wait_until_nothing_is_left() -> None:
    deadline = time.monotonic() + 20
    while live_groups() or any("Node" in name or "Trial" in name for name in alive_actors()):
        assert time.monotonic() < deadline, (live_groups(), alive_actors())
        time.sleep(0.2)


def test_a_trial_of_two_nodes_holds_exactly_two_whole_nodes(
    made_up_nodes: RayNodes, tmp_path: Path
) -> None:
    ledger = Ledger(new_store(tmp_path / "run", **gpu_space(2, max_trials=6)), Silent())
    run_trials(ledger, Watching(tmp_path / "notes"))
    assert [r.purpose for r in ledger.records] == ["explore"] * 6 + ["confirm"] * 3
    notes = (tmp_path / "notes").read_text().splitlines()
    assert len(notes) == 9
    assert len(set(notes)) == 1, "one group and its node actors are kept for all trials"
    assert notes[0].startswith("[0.0, 0.0, 8.0] 2 "), notes[0]
    wait_until_nothing_is_left()


def test_a_node_that_dies_costs_an_attempt_and_two_attempts_the_layout(
    made_up_nodes: RayNodes, tmp_path: Path
) -> None:
    class LosesNodes(FakeTrainable):
        def run(self, spec: TrialSpec, hosts: object) -> Iterator[StepReport | Ended]:
            if spec.trial_id == "0002" and not (tmp_path / "lost").exists():
                (tmp_path / "lost").touch()
                lose(hosts[1])
            if spec.trial_id == "0004":
                lose(hosts[0])
            yield from super().run(spec, hosts)

    request = gpu_space(2, max_trials=5, search="grid")
    ledger = Ledger(new_store(tmp_path / "run", **request), Silent())
    run_trials(ledger, LosesNodes())
    assert [(r.trial_id, r.outcome, r.attempts) for r in ledger.records[:5]] == [
        ("0001", "ok", 1),
        ("0002", "ok", 2),
        ("0003", "ok", 1),
        ("0004", "lost", 2),
        ("0005", "ok", 1),
    ]
    assert "node 0" in ledger.records[3].reason
    wait_until_nothing_is_left()


def test_an_unfit_node_ends_the_search(made_up_nodes: RayNodes, tmp_path: Path) -> None:
    class Unfit(FakeTrainable):
        def check(self, cluster: Cluster, hosts: object) -> None:
            raise NodeCheckFailed("node 1: device of rank 9 computes a matrix product wrong")

    ledger = Ledger(new_store(tmp_path / "run", **gpu_space(2)), Silent())
    with pytest.raises(NodeCheckFailed, match="node 1: device of rank 9"):
        run_trials(ledger, Unfit())
    assert ledger.records == []
    wait_until_nothing_is_left()


def test_too_few_nodes_is_said_with_both_numbers(made_up_nodes: RayNodes) -> None:
    a100 = device_named("a100-80gb")
    ray_nodes.check_capacity(Cluster(nodes=3, gpus_per_node=8, device=a100))
    with pytest.raises(ClusterTooSmall) as error:
        ray_nodes.check_capacity(Cluster(nodes=8, gpus_per_node=8, device=a100))
    assert str(error.value) == "needs 8 nodes of 8 GPUs, the cluster has 3 nodes of 8"


def test_part_of_a_node_is_refused(made_up_nodes: RayNodes) -> None:
    halves = Cluster(nodes=2, gpus_per_node=4, device=device_named("a100-80gb"))
    with pytest.raises(ClusterTooSmall, match="3 nodes of 8 \\(a trial takes whole nodes\\)"):
        ray_nodes.check_capacity(halves)


def test_nodes_that_somebody_holds_do_not_count(
    made_up_nodes: RayNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_nodes, "_FREE_TIMEOUT_SECONDS", 1.0)
    held = ray.util.placement_group([{"GPU": 1}])
    ray.get(held.ready())
    a100 = device_named("a100-80gb")
    try:
        ray_nodes.check_capacity(Cluster(nodes=2, gpus_per_node=8, device=a100))
        with pytest.raises(ClusterTooSmall, match="only 2 of the cluster's nodes are free"):
            ray_nodes.check_capacity(Cluster(nodes=3, gpus_per_node=8, device=a100))
    finally:
        ray.util.remove_placement_group(held)


def test_nodes_describe_themselves(made_up_nodes: RayNodes) -> None:
    cluster = Cluster(nodes=3, gpus_per_node=8, device=device_named("a100-80gb"))
    nodes = ray_nodes.inspect_nodes(cluster)
    assert len(nodes) == 3
    assert {node["torch"] for node in nodes} == {ray_nodes.describe_this_node()["torch"]}


def test_the_fake_host_is_a_host() -> None:
    host = FakeHost(address="127.0.0.1")
    assert host.listen() == ("127.0.0.1", 1)
    assert host.events(0.0) == []
