"""Real probes of virtual nodes, with gloo: from the command line to the files, and nothing left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.calibration.measured_network import AFTER_PRODUCTS, ROUNDS
from autotune.calibration.probed import Probed
from autotune.cluster import Cluster
from autotune.commands.plan import main as plan
from autotune.errors import NodeCheckFailed
from autotune.hardware import device_named, network_named
from autotune.options.command_line import command_line
from tests.conftest import REPOSITORY
from trainables.deepspeed_llm.host import LocalHost
from trainables.probe.launch import DeepSpeedProber
from trainables.probe.sizes import message_bytes

pytestmark = pytest.mark.timeout(120)

MARK = "AUTOTUNE_TEST_OF_PROBE"
SHORT = "2"


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A probe whose processes can be told from all others."""
    return subprocess.Popen(
        [sys.executable, "-m", "autotune", "probe", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, MARK: str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def marked() -> list[list[str]]:
    """Command lines of the processes of probes that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(os.getpid()):
                found.append(process.cmdline())  # empty where it has exited
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return [command for command in found if command]


def wait_until(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, marked()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def probed_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Directory and JSON of a probe of two virtual nodes of two devices."""
    out = tmp_path_factory.mktemp("probe") / "of tiny"
    process = start("--space", "tiny", "--seconds", SHORT, "--out", str(out), "--json")
    printed, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    wait_until(lambda: not marked(), 10)
    yield out, json.loads(printed)


def test_everything_is_measured_and_positive(
    probed_files: tuple[Path, dict[str, Any]],
) -> None:
    _, found = probed_files
    assert found["library"].startswith("gloo of torch 2.")
    assert (found["nodes"], found["devices_per_node"]) == (2, 2)
    curves = found["collectives"]
    places = ("within", "between", "all")
    expected = {f"{operation} {place}" for operation in ROUNDS for place in places}
    expected |= {f"{AFTER_PRODUCTS} within", "exchange within", "exchange between"}
    assert curves.keys() == expected
    for curve in curves.values():
        sizes = [point["bytes"] for point in curve]
        assert len(curve) >= 2 and sizes == sorted(sizes), "the ends, however short the time"
        assert (sizes[0], sizes[-1]) == tuple(message_bytes("cpu")[:2])
        assert all(point["seconds"] > 0 and point["gb_per_second"] > 0 for point in curve)
    assert found["attention"].keys() == {"math", "sdpa_flash"}
    for curve in (*found["attention"].values(), found["matrix_products"]):
        assert len(curve) >= 2 and all(point["tflops"] > 0 for point in curve)
    assert all(value > 0 for value in found["bandwidth_gb_per_second"].values())
    assert found["not_measured"] == {}


def test_the_files_are_accepted(
    probed_files: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, found = probed_files
    files = (str(out / "device.json"), str(out / "network.json"))
    assert found["files"] == dict(zip(("device", "network"), files, strict=True))
    arguments = ["--space", "tiny", "--gpu", files[0], "--network", files[1], "--json"]
    assert command_line(plan, arguments) == 0
    layouts = json.loads(capsys.readouterr().out)["layouts"]
    assert layouts and all(row["step_seconds"] > 0 for row in layouts)
    device, network = device_named(files[0]), network_named(files[1])
    gemm = device.constants["gemm_efficiency"]
    assert gemm.kind == "stated" and gemm.value > 0
    assert gemm.source.startswith("measured by autotune probe, 20")
    assert "gloo of torch" in gemm.source
    assert "virtual nodes of one machine" in network.source
    assert network.constants["link_efficiency"].value == 1
    assert network.link_gb_per_second > 0 and network.nic_gbit_per_second > 0
    assert all(constant.value >= 0 for constant in network.constants.values())


def test_what_is_there_is_not_overwritten(probed_files: tuple[Path, dict[str, Any]]) -> None:
    out, _ = probed_files
    before = {path: path.read_bytes() for path in out.iterdir()}
    process = start("--space", "tiny", "--seconds", SHORT, "--out", str(out))
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (2, "")
    assert errors.startswith("error: --out must be empty or new")
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_an_interrupted_probe_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "probe"
    process = start("--nodes", "2", "--seconds", "60", "--out", str(out))

    def ranks() -> int:
        """Ranks are forked by the host processes: the same command line."""
        return sum("trainables.deepspeed_llm.host_process" in line for line in marked()) - 2

    wait_until(lambda: ranks() >= 2, 60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "error: interrupted"
    wait_until(lambda: not marked(), 10)
    assert not out.exists()


def test_one_device_has_no_network(host: LocalHost) -> None:
    cluster = Cluster(nodes=1, gpus_per_node=1, device=device_named("cpu"))
    probed = Probed()
    for finding in DeepSpeedProber(device_kind="cpu").measure(cluster, [host], seconds=1):
        if finding is not None:
            probed.add(finding)
    assert probed.collectives == {}
    network = probed.network(cluster, "a test")
    assert network.link_gb_per_second == cluster.links.link_gb_per_second
    assert probed.device(cluster.device, "a test").memory_gb_per_second == pytest.approx(
        probed.bandwidths["copy"], rel=1e-3
    )


def test_a_rank_that_fails_ends_the_probe(host: LocalHost) -> None:
    cluster = Cluster(nodes=1, gpus_per_node=2, device=device_named("cpu"))
    measuring = DeepSpeedProber(device_kind="cpu").measure(cluster, [host], seconds=30)
    for finding in measuring:
        if finding is not None:
            break
    rank = psutil.Process(host._process.pid).children()[1]
    rank.kill()
    with pytest.raises(NodeCheckFailed, match=r"the measurements failed: rank 1: .*signal 9"):
        list(measuring)
    assert not psutil.Process(host._process.pid).children()
