"""Whole nodes die before, during and after a trial, and come back or do not. Trials are fakes on
real Ray nodes: what a lost node does to real ranks is in test_ranks.py and test_hosts.py."""

import dataclasses
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes
from ray.util import placement_group_table

from autotune.cluster import Cluster
from autotune.errors import NodesGone
from autotune.hardware import device_named
from autotune.ledger.ledger import Ledger
from autotune.named_spaces import load_space
from autotune.on_ray.nodes import whole_nodes
from autotune.on_ray.tuner import run_trials
from autotune.store.run_directory import open_run
from autotune.trial.trainable import RankHost
from autotune.trial.trial import Ended, StepReport, TrialSpec
from tests.autotune.simulate import new_store, run_to_the_end
from tests.faults.conftest import Row
from trainables.fake import FakeTrainable

pytestmark = [pytest.mark.timeout(300)]

CLUSTER = Cluster(nodes=2, gpus_per_node=2, device=device_named("cpu"))
NODE = {"num_cpus": 2, "resources": {"virtual_device": 2.0}}


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    made = RayNodes(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "dashboard_port": None},
    )
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def two_nodes(nodes: RayNodes) -> Iterator[RayNodes]:
    """A head without devices, and two nodes with them."""
    wait_for(lambda: len(whole_nodes(CLUSTER)) == len(nodes.worker_nodes))  # losses are noticed
    for _ in range(2 - len(whole_nodes(CLUSTER))):
        nodes.add_node(**NODE)
    wait_for(lambda: len(whole_nodes(CLUSTER)) == 2)
    yield nodes
    for node in list(nodes.worker_nodes)[2:]:
        nodes.remove_node(node)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.05)
    return time.monotonic() - started


def kill_a_node(nodes: RayNodes) -> None:
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)


class Waits(FakeTrainable):
    """Waits in the middle of its second trial, in the first attempt, until a file is there."""

    def __init__(self, notes: Path) -> None:
        super().__init__()
        self._notes = notes

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        for event in super().run(spec, hosts):
            reached = self._notes / "reached"
            is_second_step = isinstance(event, StepReport) and event.step == 1
            if spec.trial_id == "0002" and is_second_step and not reached.exists():
                reached.touch()
                while True:  # as a real trial does: events() raises NodeLost
                    for host in hosts:
                        host.events(0.2)
            yield event


class Search(threading.Thread):
    """A search beside the test, which meanwhile ends and adds nodes."""

    def __init__(self, directory: Path, **changes: object) -> None:
        super().__init__()
        tiny = load_space("tiny")
        space = tiny.replaced(
            {
                "cluster": CLUSTER,
                "model": dataclasses.replace(tiny.model, global_batch_size=32),
                "zero_stage": (1,),
            },
            what="test",
        )
        self.request = {"space": space, "search": "grid", "max_trials": 4, **changes}
        self.directory = directory
        self.worker = FakeTrainable()
        self.wait_for_nodes_seconds = 60.0
        self.error: BaseException | None = None
        self.lost_at: list[float] = []
        self.has_begun = threading.Event()

    def trial_started(self, spec: TrialSpec) -> None:
        self.has_begun.set()

    def step_done(self, spec: TrialSpec, step: StepReport) -> None: ...

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None:
        self.lost_at.append(time.monotonic())

    def trial_finished(self, record: object) -> None: ...

    def search_begins(self, *_: object) -> None: ...

    def search_ends(self) -> None: ...

    def run(self) -> None:
        if (self.directory / "run.json").exists():
            store = open_run(self.directory)
        else:
            store = new_store(self.directory, **self.request)
        self.ledger = Ledger(store, self)
        try:
            run_trials(self.ledger, self.worker, wait_for_nodes_seconds=self.wait_for_nodes_seconds)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.join(timeout=120)
        assert not self.is_alive(), "the search hangs"


def undisturbed(search: Search, directory: Path) -> list[tuple[object, ...]]:
    """The same search without Ray."""
    ledger = run_to_the_end(new_store(directory, **search.request))
    return [(r.layout, r.outcome, r.measurement.step_seconds) for r in ledger.records]


def found(search: Search) -> list[tuple[object, ...]]:
    return [(r.layout, r.outcome, r.measurement.step_seconds) for r in search.ledger.records]


def nothing_is_left() -> bool:
    groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
    actors = ray._private.state.actors().values()
    return not groups and not [a for a in actors if a["State"] in ("ALIVE", "PENDING_CREATION")]


class SlowNode(FakeTrainable):
    """The first node that is used has a device that takes twice as long as the others."""

    def __init__(self, note: Path) -> None:
        super().__init__()
        self._note = note

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        places = ray.get([host._actor.place.remote() for host in hosts])  # type: ignore[attr-defined]
        if not self._note.exists():
            self._note.write_text(places[0]["node_id"])
        slow = self._note.read_text()
        for event in super().run(spec, hosts):
            if isinstance(event, StepReport):
                nodes = [places[rank.rank // 2]["node_id"] for rank in event.ranks]
                ranks = (
                    dataclasses.replace(
                        rank, probe_seconds=2e-3 if node == slow and rank.rank % 2 else 1e-3
                    )
                    for rank, node in zip(event.ranks, nodes, strict=True)
                )
                event = dataclasses.replace(event, ranks=tuple(ranks))
            yield event


@pytest.mark.parametrize("spare", [True, False])
def test_a_slow_device_is_named_and_gone_around_where_nodes_are_spare(
    two_nodes: RayNodes, tmp_path: Path, spare: bool, row: Callable[[Row], None]
) -> None:
    if spare:
        two_nodes.add_node(**NODE)
        wait_for(lambda: len(whole_nodes(CLUSTER)) == 3)
    search = Search(tmp_path / "run")
    search.worker = SlowNode(tmp_path / "slow")
    search.start()
    search.end()
    assert search.error is None
    assert found(search) == undisturbed(search, tmp_path / "undisturbed")
    records = search.ledger.records
    named = [r for r in records if r.slow_device is not None]
    if spare:
        assert [r.trial_id for r in named] == ["0001"]
        assert [r.attempts for r in records] == [2, *[1] * (len(records) - 1)]
    else:
        assert len(named) == sum(r.measurement.measured_steps >= 3 for r in records) > 0
        assert {r.attempts for r in records} == {1}
    assert all("2.00 times its peers' time" in (r.slow_device or "") for r in named)
    wait_for(nothing_is_left)
    if spare:
        said = "named; run again on other nodes (2 attempts)"
    else:
        said = "named in every row; no node is spare"
    row(Row(fault="a device is slow against its peers", recorded=said))


# A node that is lost in a trial and one that is waited for are in other tests, too.
@pytest.mark.parametrize("comes_back", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_node_that_dies_during_a_trial(
    two_nodes: RayNodes, tmp_path: Path, comes_back: bool, row: Callable[[Row], None]
) -> None:
    search = Search(tmp_path / "run")
    search.worker = Waits(tmp_path)
    search.wait_for_nodes_seconds = 60.0 if comes_back else 1.5
    search.start()
    wait_for((tmp_path / "reached").exists)
    died_at = time.monotonic()
    kill_a_node(two_nodes)
    wait_for(lambda: bool(search.lost_at))
    noticed = search.lost_at[0] - died_at
    assert noticed < 10
    if comes_back:
        time.sleep(2)
        two_nodes.add_node(**NODE)
    search.end()
    if comes_back:
        assert search.error is None
        assert [r.attempts for r in search.ledger.records[:3]] == [1, 2, 1]
        said = "ok in 2 attempts; same rows as undisturbed"
    else:
        assert isinstance(search.error, NodesGone)
        assert "needs 2 nodes of 2 virtual devices, the cluster has 1 node of 2" in str(
            search.error
        )
        assert [r.trial_id for r in search.ledger.records] == ["0001"], "the rest is not lost"
        wait_for(nothing_is_left)
        two_nodes.add_node(**NODE)
        search = Search(tmp_path / "run")
        search.start()
        search.end()
        said = "ends with a sentence, status 130; resumed: same rows as undisturbed"
    assert found(search) == undisturbed(search, tmp_path / "undisturbed")
    wait_for(nothing_is_left)
    back = "comes back" if comes_back else "does not come back"
    row(Row(fault=f"node dies in a trial and {back}", recorded=said, seconds=noticed))


def test_a_node_that_dies_before_a_trial(
    two_nodes: RayNodes, tmp_path: Path, row: Callable[[Row], None]
) -> None:
    kill_a_node(two_nodes)
    search = Search(tmp_path / "run")
    search.start()
    assert search.has_begun.wait(30)
    time.sleep(1.5)  # it looks for nodes every second
    assert search.is_alive() and search.ledger.records == []
    two_nodes.add_node(**NODE)
    search.end()
    assert search.error is None
    assert found(search) == undisturbed(search, tmp_path / "undisturbed")
    assert {r.attempts for r in search.ledger.records} <= {1, 2}
    wait_for(nothing_is_left)
    row(Row(fault="node dies before a trial", recorded="waits for it; same rows as undisturbed"))


@pytest.mark.slow  # a lost node that is closed: tests/autotune/on_ray/test_placement.py
def test_a_node_that_dies_after_a_trial(
    two_nodes: RayNodes, tmp_path: Path, row: Callable[[Row], None]
) -> None:
    search = Search(tmp_path / "run")
    search.start()
    wait_for(lambda: len(list((tmp_path / "run/trials").glob("0*.parquet"))) >= 7)
    kill_a_node(two_nodes)
    search.end()
    assert search.error is None
    assert found(search) == undisturbed(search, tmp_path / "undisturbed")
    wait_for(nothing_is_left)
    row(Row(fault="node dies after the last trial", recorded="same rows as undisturbed"))
