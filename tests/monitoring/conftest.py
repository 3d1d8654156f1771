"""A Ray cluster of two CPU nodes with a dashboard, and a Prometheus that scrapes it."""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as RayNodes

from autotune.ledger.ledger import Ledger
from autotune.ledger.listeners import InBackground, Listeners
from autotune.named_spaces import load_space
from autotune.on_ray.metrics import RayMetrics
from autotune.store.run_directory import open_run
from autotune.trial.trial import StepReport, TrialSpec
from tests.autotune.simulate import new_store, run_one
from tests.conftest import REPOSITORY
from trainables.simulated import SimulatedTrainable

EXAMPLES = REPOSITORY / "examples" / "monitoring"
_WAIT_SECONDS = 60.0
_REPORT_INTERVAL = "RAY_metrics_report_interval_ms"


def wait_for(condition: Callable[[], object], what: str, seconds: float = _WAIT_SECONDS) -> Any:
    """What the condition gives, as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s"
        time.sleep(0.2)
    return found


def eventually(check: Callable[[], object], seconds: float = _WAIT_SECONDS) -> None:
    """Check until it holds: metrics come one by one, and from each target in its own time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            check()
            return
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def fetched(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


@dataclasses.dataclass(frozen=True)
class LiveRay:
    """A cluster whose processes report metrics every second."""

    address: str
    dashboard: str
    """Its URL."""
    metrics_port: int
    discovery: Path
    """The file in which Ray lists what Prometheus should scrape."""


@pytest.fixture(scope="package")
def ray_cluster() -> Iterator[LiveRay]:
    metrics_port, dashboard_port = free_port(), free_port()
    os.environ[_REPORT_INTERVAL] = "1000"
    try:
        nodes = RayNodes(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "include_dashboard": True,
                "dashboard_port": dashboard_port,
                "metrics_export_port": metrics_port,
            },
        )
        for _ in range(2):
            nodes.add_node(num_cpus=2, resources={"virtual_device": 2.0})
        nodes.wait_for_nodes()
        folder = Path(nodes.head_node.get_temp_dir_path())
        yield LiveRay(
            address=nodes.address,
            dashboard=f"http://127.0.0.1:{dashboard_port}",
            metrics_port=metrics_port,
            discovery=folder / "prom_metrics_service_discovery.json",
        )
        nodes.shutdown()
    finally:
        del os.environ[_REPORT_INTERVAL]


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now: `metric` (its labels) and `value`."""
        words = urllib.parse.urlencode({"query": expression})
        answer = fetched(f"{self._url}/api/v1/query?{words}")
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return [{**series, "value": float(series["value"][1])} for series in result]

    def value(self, expression: str) -> float | None:
        """The value of the only series; None where there is none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0]["value"] if found else None

    def help_texts(self) -> dict[str, str]:
        """HELP by metric."""
        metadata = fetched(f"{self._url}/api/v1/metadata")["data"]
        return {name: entries[0]["help"] for name, entries in metadata.items()}


@pytest.fixture(scope="package")
def prometheus(
    ray_cluster: LiveRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """With the configuration of the example: only the interval and the addresses are others."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    text = (EXAMPLES / "prometheus.yml").read_text()
    for example, here in (
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("/tmp/ray/prom_metrics_service_discovery.json", str(ray_cluster.discovery)),
        ("127.0.0.1:8090", f"127.0.0.1:{ray_cluster.metrics_port}"),
    ):
        assert example in text
        text = text.replace(example, here)
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text(text)
    url = f"http://127.0.0.1:{free_port()}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={url.removeprefix('http://')}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: _is_ready(url), "Prometheus")
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=5):
        return True
    return False


@pytest.fixture(scope="package")
def connected(ray_cluster: LiveRay) -> Iterator[None]:
    ray.init(address=ray_cluster.address, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


class Search:
    """A simulated search with metrics, without Tune."""

    def __init__(self, directory: Path, space: str) -> None:
        new_store(
            directory, space=load_space(space), trainable="simulated", search="guided", max_trials=6
        )
        self.directory = directory
        self.warnings: list[str] = []
        self.selector = f'{{run="{directory}"}}'

    def begin(self) -> None:
        store = open_run(self.directory)
        self.listeners = Listeners(InBackground(RayMetrics(), "metrics", self.warnings.append))
        self.ledger = Ledger(store, self.listeners)
        self.listeners.search_begins(store.request, self.directory, self.ledger.records)

    def run(self, trials: int) -> None:
        for _ in range(trials):
            spec = self.ledger.next_trial()
            assert spec is not None
            run_one(self.ledger, SimulatedTrainable(), spec)

    def begin_trial(self) -> tuple[TrialSpec, StepReport]:
        """Begin a trial, and make its first step."""
        while (spec := self.ledger.next_trial()) is not None:
            event = next(SimulatedTrainable().run(spec, []))
            if isinstance(event, StepReport):
                self.ledger.step_done(spec.trial_id, event)
                return spec, event
            self.ledger.trial_ended(spec.trial_id, event)
        raise AssertionError("no trial runs")


@pytest.fixture
def search(connected: None, prometheus: Prometheus, tmp_path: Path) -> Iterator[Search]:
    made = Search(tmp_path / "run", "llm13b")
    yield made
    made.listeners.search_ends()
    assert made.warnings == []
