"""`srun` and `scontrol` of a job whose nodes are the hosts of `tests.faults.hosts`.

They take the options that examples/clusters/slurm.sh gives, and no others. As with Slurm, a command
of srun runs once on each node of the list, with the environment of the script, and srun returns
when all of them have ended. SIGUSR1 is passed on to their process groups; SIGTERM kills all that
they have started ("srun: forcing job termination").
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.conftest import REPOSITORY
from tests.faults.hosts import Host

_NETWORKS = "FAKE_SLURM_NETWORKS"
"""Variable: JSON object with the network namespace of each node."""


def install(folder: Path, hosts: Sequence[Host]) -> dict[str, str]:
    """Write both programs into the folder. Returns the variables of a job on these hosts."""
    folder.mkdir()
    for name in ("srun", "scontrol"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {__name__} {name} "$@"\n')
        program.chmod(0o755)
    return {
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "node[1-2]",
        _NETWORKS: json.dumps({host.address: host.name for host in hosts}),
    }


def scontrol(arguments: Sequence[str]) -> int:
    assert list(arguments) == ["show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], arguments
    print("\n".join(json.loads(os.environ[_NETWORKS])))
    return 0


def srun(arguments: Sequence[str]) -> int:
    given = [word for word in arguments if word.startswith("--")][:5]
    options = dict(word.removeprefix("--").partition("=")[::2] for word in given)
    command = arguments[len(given) :]
    nodes = options["nodelist"].split(",")
    assert options == {
        "overlap": "",
        "cpu-bind": "none",
        "nodes": str(len(nodes)),
        "ntasks": str(len(nodes)),
        "nodelist": options["nodelist"],
    }
    networks = json.loads(os.environ[_NETWORKS])
    tasks = [
        subprocess.Popen(["ip", "netns", "exec", networks[node], *command], start_new_session=True)
        for node in nodes
    ]

    def pass_on(number: int, _: object) -> None:
        for task in tasks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(task.pid, number)

    def kill(_: int, __: object) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    signal.signal(signal.SIGUSR1, pass_on)
    signal.signal(signal.SIGTERM, kill)
    return max(task.wait() for task in tasks)


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
