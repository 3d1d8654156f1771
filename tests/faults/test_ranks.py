"""One real search in which nearly every trial fails in a different way; the others succeed."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes
from ray.util import placement_group_table

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.ledger.ledger import Ledger
from autotune.named_spaces import load_space
from autotune.on_ray.tuner import run_trials
from autotune.space import SearchSpace
from autotune.store.record import TrialRecord
from autotune.trial.trial import Outcome
from tests.autotune.simulate import Silent, new_store
from tests.faults.conftest import Row
from tests.faults.faulty import FaultyDeepSpeedLlm, delays
from tests.faults.faulty_host import orphans
from trainables.fake import fake_step_seconds

pytestmark = [pytest.mark.timeout(420)]

TIMEOUT_SECONDS = 10
DEATH_SECONDS = 10
# What is on record for each fault: outcome, beginning of the reason, attempts.
EXPECTED: dict[str, tuple[Outcome, str, int]] = {
    "os._exit(3)": (Outcome.CRASHED, "rank 1: left with exit status 3", 1),
    "SIGKILL": (Outcome.CRASHED, "rank 1: killed by signal 9", 1),
    "SIGSEGV": (Outcome.CRASHED, "rank 1: killed by signal 11", 1),
    "raises": (Outcome.CRASHED, "rank 1: ValueError: on purpose \N{COLLISION SYMBOL}", 1),
    "hangs in a collective": (Outcome.TIMEOUT, "step 1 was not done within its 10 s", 1),
    "hangs in Python": (Outcome.TIMEOUT, "step 1 was not done within its 10 s", 1),
    "stopped (SIGSTOP)": (Outcome.TIMEOUT, "step 1 was not done within its 10 s", 1),
    "NaN loss": (Outcome.INVALID, "step 1: loss nan", 1),
    "out of memory on one rank": (Outcome.OOM, "rank 1: RuntimeError: ", 1),
    "prints garbage": (Outcome.OK, "", 1),
    "fills stderr (64 MiB)": (Outcome.OK, "", 1),
    "closes its output": (Outcome.OK, "", 1),
    "leaves children": (Outcome.OK, "", 1),
    "slow device": (Outcome.OK, "", 1),
    "wrong loss": (Outcome.INVALID, "loss of the last step must be that of trial 0001", 1),
    "trainable's actor is killed": (Outcome.OK, "", 2),
    "node's actor is killed": (Outcome.OK, "", 2),
    "host process is killed": (Outcome.OK, "", 2),
}
# Further ways to hang (10 s each) and to be ended by a signal.
SLOW = {"hangs in a collective", "hangs in Python", "SIGKILL"}


@dataclasses.dataclass(frozen=True)
class Search:
    """Results of the search."""

    faults: dict[str, str]
    """By the id of the trial that had it."""
    records: dict[str, TrialRecord]
    best: TrialRecord
    delays: dict[str, float]
    directory: Path
    left_behind: list[str]

    def trial_of(self, fault: str) -> str:
        return next(trial_id for trial_id, name in self.faults.items() if name == fault)


def a_space() -> SearchSpace:
    """Two virtual nodes of one device, a Llama that trains in milliseconds, 72 layouts."""
    tiny = load_space("tiny")
    small = {
        **{"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96},
        **{"vocab_size": 512, "sequence_length": 16, "global_batch_size": 8},
    }
    fields = {
        "model": dataclasses.replace(tiny.model, **small),
        "cluster": Cluster(nodes=2, gpus_per_node=1, device=device_named("cpu")),
        "tensor_parallel": (1,),
        "pipeline_parallel": (1,),
        "zero_stage": (0, 1, 2),
        "micro_batch_size": (1, 2, 4),
        "rmsnorm_kernel": ("fused",),
        "warmup_steps": 1,
        "measured_steps": 3,
    }
    return tiny.replaced(fields, what="test")


def left_behind(before: set[int], shared_memory: set[str]) -> list[str]:
    """Resources that a search should have released, a few seconds after its end."""
    deadline = time.monotonic() + 10
    while (left := found_now(before, shared_memory)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def found_now(before: set[int], shared_memory: set[str]) -> list[str]:
    """Processes, placement groups and shared memory of a search."""
    left = [f"orphan {pid}" for pid in orphans()]
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join(process.cmdline())
            if process.pid not in before and ("faulty_host" in words or "LayoutTrial" in words):
                left.append(words)
    left += [g["name"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
    return left + sorted(set(os.listdir("/dev/shm")) - shared_memory)


def request_of(trials: int) -> dict[str, object]:
    return {
        "space": a_space(),
        "trainable": "deepspeed",
        "search": "grid",
        "max_trials": trials,
        "reduced_trials": False,
        "stop_factor": 10.0,
        "trial_timeout_seconds": TIMEOUT_SECONDS,
    }


@pytest.fixture(scope="module")
def search(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Search]:
    """With all faults but those that are slow and not asked for."""
    asked = {
        item.callspec.params.get("fault")
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }
    chosen = [fault for fault in EXPECTED if fault not in SLOW or fault in asked]
    faults = {f"{number:04d}": fault for number, fault in enumerate(chosen, start=2)}
    directory = tmp_path_factory.mktemp("faults")
    device = {"virtual_device": 1.0}
    nodes = RayNodes(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "resources": device,
            "include_dashboard": False,
            "dashboard_port": None,
        },
    )
    nodes.add_node(num_cpus=2, resources=device)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    try:
        before = {p.pid for p in psutil.Process().children(recursive=True)}
        shared_memory = set(os.listdir("/dev/shm"))
        store = new_store(directory / "run", **request_of(len(faults) + 3))
        ledger = Ledger(store, Silent())
        run_trials(ledger, FaultyDeepSpeedLlm(faults, directory / "notes"))
        yield Search(
            faults=faults,
            records={record.trial_id: record for record in ledger.records},
            best=ledger.best[0],
            delays=dict(delays(directory / "notes")),
            directory=directory / "run",
            left_behind=left_behind(before, shared_memory),
        )
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=pytest.mark.slow) if fault in SLOW else fault for fault in EXPECTED],
)
def test_what_is_on_record(search: Search, fault: str, row: Callable[[Row], None]) -> None:
    trial_id = search.trial_of(fault)
    record = search.records[trial_id]
    outcome, reason, attempts = EXPECTED[fault]
    assert (record.outcome, record.attempts) == (outcome, attempts), record.reason
    assert record.reason.startswith(reason)
    if outcome is Outcome.OK:
        assert record.reason == "" and record.measurement.measured_steps == 3
    noticed = search.delays.get(trial_id) if outcome is not Outcome.OK else None
    if noticed is not None:
        limit = TIMEOUT_SECONDS if outcome is Outcome.TIMEOUT else DEATH_SECONDS
        assert noticed < limit + 2
    said = f"{outcome}: {record.reason[:60]}" if record.reason else str(outcome)
    again = f", {attempts} attempts" if attempts > 1 else ""
    row(Row(fault=fault, recorded=said + again, seconds=noticed))


def test_the_other_trials_went_on_and_the_best_of_them_won(search: Search) -> None:
    blamed = {Outcome.CRASHED, Outcome.TIMEOUT, Outcome.INVALID, Outcome.OOM, Outcome.LOST}
    explored = [r for r in search.records.values() if r.purpose == "explore"]
    assert len(explored) == len(search.faults) + 3
    for record in explored:
        expected = EXPECTED.get(search.faults.get(record.trial_id, ""), (Outcome.OK, "", 1))
        assert record.outcome is expected[0]
    candidates = [r.layout for r in explored if r.outcome not in blamed]
    assert search.best.layout == min(candidates, key=fake_step_seconds)
    assert search.best.purpose == "confirm"


def test_nothing_is_left_behind(search: Search) -> None:
    assert search.left_behind == []


def test_a_slow_device_is_named(search: Search) -> None:
    named = search.records[search.trial_of("slow device")].slow_device
    assert named is not None and named.startswith("node ") and "rank 1: " in named
    assert {r.slow_device for r in search.records.values()} == {named, None}


def test_a_flood_fills_no_disk(search: Search) -> None:
    log = search.directory / "logs" / search.trial_of("fills stderr (64 MiB)") / "rank-1.log"
    assert 2**20 < log.stat().st_size < 20 * 2**20
    assert "more bytes were left out" in log.read_text(errors="replace")[-100:]


def test_where_a_segmentation_fault_was_is_in_the_log(search: Search) -> None:
    log = search.directory / "logs" / search.trial_of("SIGSEGV") / "rank-1.log"
    assert "_segfault" in log.read_text(errors="replace")
