"""Searches over hosts with addresses of their own, as users run them on several machines."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from autotune.layout import Layout
from autotune.store.record import TrialRecord
from autotune.store.run_directory import open_run
from tests.conftest import REPOSITORY
from tests.faults import hosts as on_one_machine
from tests.faults.conftest import Row
from tests.faults.hosts import LAN, Host, network, start_ray

REASON = on_one_machine.why_not()
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(280),
]

# Two layouts, of which every machine finds the first by far the faster one.
SPACE = """
import dataclasses
from search_spaces import tiny

def space():
    whole = tiny.space()
    model = dataclasses.replace(whole.model, num_hidden_layers=2)
    return dataclasses.replace(
        whole, name="hosts", model=model,
        cluster=dataclasses.replace(whole.cluster, memory_gib=None),
        tensor_parallel=(1, 4), pipeline_parallel=(1,), zero_stage=(1,), micro_batch_size=(2,),
        activation_checkpointing=("none",), sequence_parallel=(False,),
        attention_kernel=("sdpa_flash",), rmsnorm_kernel=("fused",), measured_steps=8,
    )
"""
BEST = Layout(data_parallel=4, micro_batch_size=2)
# Limit for noticing a lost host: 10 s, doubled for a busy machine.
NOTICED_SECONDS = 20
RANKS = "deepspeed_llm.host_process"
NODE_ACTOR = "_NodeActor"
OWN_NAME = "import socket; print(socket.gethostbyname(socket.gethostname()))"
PLACEMENT_GROUPS = """
import ray
from ray.util import placement_group_table

ray.init(address="auto", log_to_driver=False, logging_level="error")
print(sorted({group["state"] for group in placement_group_table().values()}))
"""


@dataclass
class RayOnHosts:
    """Two hosts with Ray on them, and how to search there."""

    hosts: list[Host]
    address: str
    env: dict[str, str]
    folder: Path

    def search(
        self, out: Path, *options: object, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        (self.folder / "space.py").write_text(SPACE, encoding="utf-8")
        return self.hosts[0].start(
            *(sys.executable, "-m", "autotune.run", "--space", self.folder / "space.py"),
            *("--out", out, "--address", self.address, "--search", "grid", "--whole-trials"),
            *("--synthetic-data", "--max-trials", "2", "--trial-timeout", "100", *options),
            cwd=REPOSITORY,
            env=env or self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def ended(self, search: subprocess.Popen[str], *, status: int) -> str:
        output = search.communicate(timeout=200)[0]
        assert search.returncode == status, output
        return output

    def placement_groups(self) -> str:
        env = {**self.env, "RAY_ADDRESS": self.address}
        found = self.hosts[0].run(sys.executable, "-c", PLACEMENT_GROUPS, env=env, check=True)
        return found.stdout.strip()

    def wait_until_nothing_is_left(self) -> None:
        wait_until(
            lambda: (
                not [p for host in self.hosts for p in host.processes(with_word=RANKS)]
                and not [p for host in self.hosts for p in host.processes(with_word=NODE_ACTOR)]
            ),
            "a rank, its host process or a node actor is left",
        )
        assert self.placement_groups() == "['REMOVED']"


def wait_until(condition: Callable[[], bool], problem: str, seconds: float = 60) -> float:
    """Wait, and return how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, problem
        time.sleep(0.1)
    return time.monotonic() - started


@contextlib.contextmanager
def ray_on_two_hosts(folder: Path, **of_ray: str) -> Iterator[RayOnHosts]:
    """A Ray cluster with token authentication, which Ray enables when it finds a token file."""
    home = folder / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
        env["RAY_TMPDIR"] = short  # paths of sockets have 107 characters at most
        with network(2) as hosts:
            address = start_ray(hosts, folder, {**env, **of_ray})
            yield RayOnHosts(hosts, address, {**env, "RAY_AUTH_MODE": "token"}, folder)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayOnHosts]:
    with ray_on_two_hosts(tmp_path_factory.mktemp("hosts")) as found:
        yield found


def wait_for_ranks(search: subprocess.Popen[str], out: Path, hosts: list[Host]) -> None:
    """Wait until the ranks of the first trial run: two and their parent process on each host."""

    def are_there() -> bool:
        assert search.poll() is None, search.communicate()[0]
        logs = list((out / "logs" / "0001").glob("rank-*.log"))
        return len(logs) == 4 and all(len(host.processes(with_word=RANKS)) == 3 for host in hosts)

    wait_until(are_there, "the first trial does not start", 120)


def ranks_are_connected(host: Host) -> bool:
    return {"LISTEN", "ESTAB"} <= set(host.tcp_addresses(host.processes(with_word=RANKS)))


def explored(out: Path) -> list[TrialRecord]:
    return [record for record in open_run(out).trials() if record.purpose == "explore"]


def test_without_its_token_a_cluster_is_not_searched(cluster: RayOnHosts, tmp_path: Path) -> None:
    untold = {name: value for name, value in cluster.env.items() if name != "RAY_AUTH_MODE"}
    without = {**cluster.env, "HOME": str(tmp_path)}
    wrong = {**cluster.env, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for env in (untold, without, wrong):
        out = tmp_path / "run"
        said = cluster.ended(cluster.search(out, env=env), status=2)
        assert "wants its token: set RAY_AUTH_MODE=token" in said
        assert len(said.splitlines()) == 1, said
        assert not out.exists()


def test_ranks_of_two_hosts_meet_at_their_own_addresses(
    cluster: RayOnHosts, tmp_path: Path
) -> None:
    """The host names resolve to another interface, over which the hosts are not connected."""
    out = tmp_path / "run"
    search = cluster.search(out, "--max-trials", "1")
    wait_for_ranks(search, out, cluster.hosts)
    for host in cluster.hosts:
        assert host.run(sys.executable, "-c", OWN_NAME).stdout.startswith("198.51.100.")
        processes = host.processes(with_word=RANKS)
        assert {process.environ()["GLOO_SOCKET_IFNAME"] for process in processes} == {LAN}
        assert {process.environ()["NCCL_SOCKET_IFNAME"] for process in processes} == {f"={LAN}"}
    wait_until(lambda: all(map(ranks_are_connected, cluster.hosts)), "the ranks do not meet")
    for host in cluster.hosts:
        # The rendezvous of rank 0, gloo's sockets, and all connections.
        used = host.tcp_addresses(host.processes(with_word=RANKS))
        assert set().union(*used.values()) == {host.address}, used
    cluster.ended(search, status=0)
    assert [(record.outcome, record.attempts) for record in explored(out)[:1]] == [("ok", 1)]
    cluster.wait_until_nothing_is_left()


@pytest.mark.slow
def test_a_host_cut_off_in_mid_trial_and_healed(
    cluster: RayOnHosts, tmp_path: Path, row: Callable[[Row], None]
) -> None:
    head, other = cluster.hosts
    out = tmp_path / "run"
    search = cluster.search(out)
    wait_for_ranks(search, out, cluster.hosts)
    other.cut_off()
    noticed = wait_until(lambda: not head.processes(with_word=RANKS), "the cut is not noticed")
    assert noticed < NOTICED_SECONDS
    other.heal()
    cluster.ended(search, status=0)
    records = explored(out)
    assert [(record.trial_id, record.attempts) for record in records] == [("0001", 2), ("0002", 1)]
    assert records[0].outcome == "ok"
    best = json.loads((out / "best.json").read_text())["layout"]
    assert best == BEST.columns(), "as in an undisturbed search"
    cluster.wait_until_nothing_is_left()
    recorded = "run again when the host was back; exit status 0"
    row(Row(fault="a host cut off in mid-trial, then healed", recorded=recorded, seconds=noticed))


@pytest.mark.slow
def test_a_host_that_stays_away_ends_its_ranks_and_the_search(
    tmp_path: Path, row: Callable[[Row], None]
) -> None:
    soon = {
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "3",
    }
    with ray_on_two_hosts(tmp_path, **soon) as cluster:
        other = cluster.hosts[1]
        out = tmp_path / "run"
        search = cluster.search(out, "--wait-for-nodes", "5")
        wait_for_ranks(search, out, cluster.hosts)
        other.cut_off()
        cut_at = time.monotonic()
        said = cluster.ended(search, status=130)
        assert "needs 2 nodes of 2 virtual devices, the cluster has 1 node of 2" in said
        assert f"continue with --resume {out}" in said.replace("\n", "")
        assert explored(out) == []
        wait_until(lambda: not other.processes(with_word=RANKS), "ranks without an owner", 90)
        row(
            Row(
                fault="a host cut off for good: its own ranks",
                recorded="ended by their node; exit status 130",
                seconds=time.monotonic() - cut_at,
            )
        )
