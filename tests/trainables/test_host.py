"""Life cycle of ranks: none is left behind, and the first failure determines the outcome."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from autotune.cluster import Cluster
from autotune.errors import NodeCheckFailed, NodeLost
from autotune.hardware import device_named
from autotune.layout import layout_from_mapping
from autotune.model import Model
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.launch import DeepSpeedLlm

WORKER = DeepSpeedLlm(device_kind="cpu")


@pytest.fixture
def spec(small_model: Model, tmp_path: Path) -> TrialSpec:
    return TrialSpec(
        trial_id="0001",
        layout=layout_from_mapping({"data_parallel": 2}, small_model),
        model=small_model,
        cluster=Cluster(nodes=1, gpus_per_node=2, device=device_named("cpu")),
        precision="fp32",
        warmup_steps=0,
        measured_steps=3,
        log_dir=str(tmp_path / "logs"),
        trial_timeout_seconds=60,
    )


def ended(spec: TrialSpec, *hosts: LocalHost) -> Ended:
    *_, last = WORKER.run(spec, list(hosts))
    assert isinstance(last, Ended)
    return last


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.05)


def ranks_of(host: LocalHost) -> list[psutil.Process]:
    return psutil.Process(host._process.pid).children(recursive=True)


class Falsifying:
    """A host that forwards all calls, but changes the events of one rank."""

    def __init__(self, host: LocalHost, changes: dict[str, object], rank: int = 1) -> None:
        self._host, self._changes, self._rank = host, changes, rank

    def __getattr__(self, name: str) -> object:
        return getattr(self._host, name)

    def events(self, timeout_seconds: float) -> list[dict[str, object]]:
        return [
            {**event, **{key: value for key, value in self._changes.items() if key in event}}
            if event["rank"] == self._rank
            else event
            for event in self._host.events(timeout_seconds)
        ]


def test_no_rank_is_left_after_a_trial(spec: TrialSpec, host: LocalHost) -> None:
    assert ended(spec, host).outcome is Outcome.OK
    assert ranks_of(host) == []
    assert {p.name for p in Path(spec.log_dir).iterdir()} == {"rank-0.log", "rank-1.log"}


def test_closing_the_iterator_ends_the_trial_at_once(spec: TrialSpec, host: LocalHost) -> None:
    events = WORKER.run(dataclasses.replace(spec, measured_steps=10_000), [host])
    assert isinstance(next(events), StepReport)
    assert len(ranks_of(host)) == 2
    started = time.monotonic()
    events.close()
    assert ranks_of(host) == []
    assert time.monotonic() - started < 5


def test_out_of_memory_is_honest_and_the_host_goes_on(spec: TrialSpec, host: LocalHost) -> None:
    limited = dataclasses.replace(spec.cluster, memory_gib=0.002)
    last = ended(dataclasses.replace(spec, cluster=limited), host)
    assert last.outcome is Outcome.OOM, last
    assert last.reason.startswith("rank ")
    assert ended(spec, host).outcome is Outcome.OK


def test_the_failing_rank_names_the_outcome(spec: TrialSpec, host: LocalHost) -> None:
    last = ended(dataclasses.replace(spec, data="/no/such/text"), host)
    assert last.outcome is Outcome.CRASHED
    assert "data: no such file or folder" in last.reason


def test_a_killed_rank_is_a_crash_of_that_rank(spec: TrialSpec, host: LocalHost) -> None:
    events = WORKER.run(dataclasses.replace(spec, measured_steps=10_000), [host])
    next(events)
    ranks_of(host)[1].send_signal(signal.SIGKILL)
    *_, last = events
    assert isinstance(last, Ended) and last.outcome is Outcome.CRASHED
    assert last.reason == "rank 1: killed by signal 9"
    assert ranks_of(host) == []


def test_a_stuck_step_is_cut_at_its_deadline(spec: TrialSpec, host: LocalHost) -> None:
    spec = dataclasses.replace(spec, measured_steps=10_000, step_deadline_seconds=1.0)
    events = WORKER.run(spec, [host])
    next(events)
    ranks_of(host)[0].send_signal(signal.SIGSTOP)
    started = time.monotonic()
    *_, last = events
    assert isinstance(last, Ended) and last.outcome is Outcome.TIMEOUT
    assert "was not done within its 1 s" in last.reason
    assert time.monotonic() - started < 8
    assert ranks_of(host) == []


def test_a_trial_is_cut_at_its_deadline(spec: TrialSpec, host: LocalHost) -> None:
    spec = dataclasses.replace(spec, measured_steps=100_000, trial_timeout_seconds=2.0)
    last = ended(spec, host)
    assert last.outcome is Outcome.TIMEOUT and "its 2 s" in last.reason


def test_two_hosts_share_a_layout_until_one_dies(spec: TrialSpec, host: LocalHost) -> None:
    cluster = dataclasses.replace(spec.cluster, nodes=2, gpus_per_node=1)
    with LocalHost(device_kind="cpu") as other:
        WORKER.check(cluster, [host, other])
        spec = dataclasses.replace(spec, cluster=cluster)
        assert ended(spec, host, other).outcome == "ok"
        events = WORKER.run(dataclasses.replace(spec, measured_steps=10_000), [host, other])
        next(events)
        ranks = [*ranks_of(host), *ranks_of(other)]
        assert len(ranks) == 2
        other._process.kill()
        with pytest.raises(NodeLost, match="host process ended"):
            list(events)
        wait_until(lambda: not any(rank.is_running() for rank in ranks))


def test_an_unfit_node_is_named(spec: TrialSpec, host: LocalHost) -> None:
    wrong = Falsifying(host, {"product_is_right": False})
    with pytest.raises(NodeCheckFailed, match="node 0: device of rank 1 computes a matrix product"):
        WORKER.check(spec.cluster, [wrong])


class Vanishing:
    """The node of rank 1 dies: its rank falls silent, and later the host raises NodeLost."""

    def __init__(self, host: LocalHost, seconds: float) -> None:
        self._host, self._seconds = host, seconds
        self._died_at: float | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._host, name)

    def events(self, timeout_seconds: float) -> list[dict[str, object]]:
        if self._died_at is not None and time.monotonic() - self._died_at > self._seconds:
            raise NodeLost("node 1: it no longer answers")
        events = self._host.events(timeout_seconds)
        if any(event["event"] in ("step", "checked") for event in events):
            self._died_at = self._died_at or time.monotonic()
            reason = "RuntimeError: Connection closed by peer"
            failed = {"event": "failed", "outcome": "crashed", "consequence": True}
            return [{**failed, "reason": reason, "rank": 0}]
        return [event for event in events if event["rank"] == 0]


def test_a_node_that_dies_is_not_blamed_on_the_layout(spec: TrialSpec, host: LocalHost) -> None:
    """Its peers report closed connections long before the node is reported lost."""
    long = dataclasses.replace(spec, measured_steps=10_000)
    with pytest.raises(NodeLost, match="node 1"):
        list(WORKER.run(long, [Vanishing(host, seconds=2)]))
    host.stop()
    with pytest.raises(NodeLost, match="node 1"):
        WORKER.check(spec.cluster, [Vanishing(host, seconds=2)])


def test_a_host_process_that_cannot_start_is_an_unfit_node(spec: TrialSpec) -> None:
    with (
        LocalHost(device_kind="cpu", program="no.such.module") as broken,
        pytest.raises(NodeCheckFailed, match="the host process cannot start"),
    ):
        WORKER.check(spec.cluster, [broken])


def test_a_loss_that_is_no_number_is_invalid(spec: TrialSpec, host: LocalHost) -> None:
    wrong = Falsifying(host, {"grad_norm": float("inf")})
    *steps, last = WORKER.run(spec, [wrong])
    assert isinstance(last, Ended) and last.outcome is Outcome.OK, "rank 0 speaks for all"
    wrong = Falsifying(host, {"loss": float("nan")}, rank=0)
    *steps, last = WORKER.run(spec, [wrong])
    assert steps == []
    assert isinstance(last, Ended) and last.outcome is Outcome.INVALID
    assert "step 0: loss nan" in last.reason


OWNER = """
import sys
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.launch import DeepSpeedLlm
from autotune.trial.trial import trial_spec_from_json
import json
spec = trial_spec_from_json(json.loads(sys.argv[1]))
with LocalHost(device_kind="cpu") as host:
    for event in DeepSpeedLlm(device_kind="cpu").run(spec, [host]):
        print("step", flush=True)
"""


def test_killing_the_owner_leaves_no_rank(spec: TrialSpec) -> None:
    from autotune.trial.trial import to_json

    text = json.dumps(to_json(dataclasses.replace(spec, measured_steps=100_000)))
    owner = subprocess.Popen([sys.executable, "-c", OWNER, text], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"step\n"
    descendants = psutil.Process(owner.pid).children(recursive=True)
    assert len(descendants) == 3, "the host process and two ranks"
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    wait_until(lambda: not any(process.is_running() for process in descendants))
