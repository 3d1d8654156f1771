"""examples/clusters/slurm.sh, driven on two hosts by commands that stand in for Slurm's."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune import load
from tests.autotune.test_run import wait_until_gone
from tests.clusters import fake_slurm
from tests.conftest import REPOSITORY
from tests.faults.hosts import Host, network, why_not

SCRIPT = REPOSITORY / "examples" / "clusters" / "slurm.sh"
REASON = why_not()
on_two_hosts = pytest.mark.skipif(REASON is not None, reason=str(REASON))

# Each node has two devices that are CPUs.
NODES = '--num-cpus=2 --object-store-memory=100000000 --resources={"virtual_device":2}'
REAL = "--space tiny --max-trials 4 --search random --whole-trials --synthetic-data"
# A training command that only prints figures: it starts without torch, in no time.
COMMAND = "--space tiny --max-trials 5 --search random --trainable command --command steps.toml"
STEPS = """
argv = ["sh", "-c", "while :; do echo step 0.1 s; sleep 0.1; done"]
figures.step_seconds = {pattern = 'step ([0-9.]+) s'}
"""


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with network(2) as both:
        yield both


def job(hosts: list[Host], tmp_path: Path, search: str) -> "subprocess.Popen[str]":
    """The batch file, as Slurm starts it: on the first node."""
    commands = tmp_path / "commands"
    if commands.exists():
        shutil.rmtree(commands)
    outside = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "SLURM_"))}
    env = {
        **outside,
        **fake_slurm.install(commands, hosts),
        "OUT": str(tmp_path / "run"),
        "RAY_START_OPTIONS": NODES,
    }
    return hosts[0].start(
        *("bash", SCRIPT, *search.split()),
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for_a_trial(batch: "subprocess.Popen[str]", run: Path) -> None:
    deadline = time.monotonic() + 150
    while not list(run.glob("trials/*.parquet")):
        assert batch.poll() is None and time.monotonic() < deadline, batch.communicate()[0]
        time.sleep(0.1)


@on_two_hosts
@pytest.mark.parametrize(
    "search", [COMMAND, pytest.param(REAL, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_a_job_that_is_ended_and_requeued_goes_on(
    hosts: list[Host], tmp_path: Path, search: str
) -> None:
    folders = set(Path("/tmp").glob("ray-??????"))
    (tmp_path / "steps.toml").write_text(STEPS)
    batch = job(hosts, tmp_path, search)
    wait_for_a_trial(batch, tmp_path / "run")
    made = set(Path("/tmp").glob("ray-??????")) - folders
    assert len(made) == 2 and all(folder.stat().st_mode & 0o077 == 0 for folder in made)
    batch.send_signal(signal.SIGTERM)
    said = batch.communicate(timeout=90)[0]
    assert batch.returncode == 130, said
    before = load(tmp_path / "run").trials["trial_id"].to_pylist()
    nothing_is_left(hosts, folders)

    batch = job(hosts, tmp_path, search)
    said = batch.communicate(timeout=200)[0]
    assert batch.returncode == 0, said
    run = load(tmp_path / "run")
    ids = run.trials["trial_id"].to_pylist()
    assert ids[: len(before)] == before and len(ids) > len(before)
    assert run.best is not None
    nothing_is_left(hosts, folders)


def nothing_is_left(hosts: list[Host], folders: set[Path]) -> None:
    """No process on a host, and no folder of Ray. What was told to end may still be at it."""
    for host in hosts:
        wait_until_gone(host.processes())
    assert set(Path("/tmp").glob("ray-??????")) <= folders


def test_what_bash_and_shellcheck_say() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True, timeout=30)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed")
    said = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True, timeout=30)
    assert said.returncode == 0, said.stdout
