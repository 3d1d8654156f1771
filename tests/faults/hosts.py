"""Hosts with addresses of their own, on one machine: network namespaces joined by a bridge.

Each host has two interfaces: `lan0`, over which the hosts reach each other, and `wan0`, which leads
nowhere and is what the host's own name resolves to, as on machines with a separate management
network. Everything that runs in a namespace belongs to it, and is killed with it.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

LAN = "lan0"
RAY_PORT = 6379

_NUMBERS = itertools.count(1)
_ETC = Path("/etc/netns")  # `ip netns exec` shows a namespace its files from here
_GONE_SECONDS = 20
_RAY_STARTED_SECONDS = 90


def why_not() -> str | None:
    """Why this machine cannot create network namespaces; None if it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux, to make network namespaces"
    if shutil.which("ip") is None or shutil.which("ss") is None:
        return "needs iproute2 (ip and ss)"
    try:
        with network(2):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces cannot be made here: {error}"


class Host:
    """One namespace with its own address."""

    def __init__(self, name: str, address: str, switch: str, port: str) -> None:
        self.name, self.address = name, address
        self._switch, self._port = switch, port
        self._started: list[subprocess.Popen[str]] = []

    def command(self, *arguments: object) -> list[str]:
        """The command, to be run on this host."""
        return ["ip", "netns", "exec", self.name, *map(str, arguments)]

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Start a process on this host."""
        process = subprocess.Popen(self.command(*arguments), text=True, **options)
        self._started.append(process)
        return process

    def run(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end."""
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, **options)

    def processes(self, *, with_word: str = "") -> list[psutil.Process]:
        """Processes on this host with that word in their command line."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
        )
        found = []
        for process_id in listed.stdout.split():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(process_id))
                if with_word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def tcp_addresses(self, processes: list[psutil.Process]) -> dict[str, set[str]]:
        """This host's own addresses that the processes use for TCP, by the state of the socket."""
        addresses: dict[str, set[str]] = {}
        for line in self.run("ss", "-H", "-t", "-a", "-n", "-p", check=True).stdout.splitlines():
            state, _, _, local = line.split()[:4]
            owners = {int(process_id) for process_id in re.findall(r"pid=(\d+)", line)}
            if owners & {process.pid for process in processes}:
                address = local.rpartition(":")[0].strip("[]").removeprefix("::ffff:")
                addresses.setdefault(state, set()).add(address)
        return addresses

    def cut_off(self) -> None:
        """Disconnect the host: it keeps its addresses but receives no packets."""
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def heal(self) -> None:
        """Reconnect the host."""
        _ip("-n", self._switch, "link", "set", self._port, "up")

    def kill_all(self) -> None:
        """End everything that runs on this host."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        for started in self._started:
            started.wait(_GONE_SECONDS)
            if started.stdout is not None:
                started.stdout.close()
        psutil.wait_procs(processes, timeout=_GONE_SECONDS)


@contextlib.contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """Connected hosts; removed on exit, with all processes on them.

    Each network has other addresses than the last: Ray searches all processes of the machine for
    other Ray processes, whatever their network.
    """
    number = next(_NUMBERS)
    unique = f"autotune-{os.getpid()}-{number}"
    subnet = f"10.{64 + number % 64}.{os.getpid() % 256}"
    switch = f"{unique}-switch"
    hosts = [
        Host(f"{unique}-{host}", f"{subnet}.{host}", switch, f"lan{host}")
        for host in range(1, count + 1)
    ]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host_number, host in enumerate(hosts, 1):
            _connect(host, host_number, switch)
        yield hosts
    finally:
        for host in hosts:
            if Path("/run/netns", host.name).exists():
                host.kill_all()
            _ip("netns", "delete", host.name, check=False)
            shutil.rmtree(_ETC / host.name, ignore_errors=True)
        _ip("netns", "delete", switch, check=False)


def _connect(host: Host, number: int, switch: str) -> None:
    # `ip netns exec` mounts this as /etc/hosts: the host name resolves to the wrong network.
    elsewhere = f"198.51.100.{number}"
    (_ETC / host.name).mkdir(parents=True)
    names = f"127.0.0.1 localhost\n{elsewhere} {os.uname().nodename}\n"
    (_ETC / host.name / "hosts").write_text(names, encoding="utf-8")
    _ip("netns", "add", host.name)
    _ip("-n", host.name, "link", "set", "lo", "up")
    for interface, address, peer in (
        ("wan0", elsewhere, f"wan{number}"),
        (LAN, host.address, f"lan{number}"),
    ):
        ends = (interface, "type", "veth", "peer", "name", peer, "netns", switch)
        _ip("-n", host.name, "link", "add", *ends)
        _ip("-n", host.name, "address", "add", f"{address}/24", "dev", interface)
        _ip("-n", host.name, "link", "set", interface, "up")
        _ip("-n", switch, "link", "set", peer, "up")
    _ip("-n", switch, "link", "set", f"lan{number}", "master", "bridge")


def start_ray(hosts: list[Host], folder: Path, env: Mapping[str, str]) -> str:
    """Start Ray on the hosts, as users do, with two devices each; the cluster's address.

    The first is the head; its environment is taken as it is, and the others use the token.
    """
    address = f"{hosts[0].address}:{RAY_PORT}"
    # Not below `folder`: the paths of Ray's sockets have 107 characters at most.
    roles = [["--head", f"--port={RAY_PORT}", "--include-dashboard=false"]]
    roles += [[f"--address={address}"] for _ in hosts[1:]]
    for number, (host, role) in enumerate(zip(hosts, roles, strict=True), 1):
        log = folder / f"ray-{number}.log"
        with log.open("w", encoding="utf-8") as output:
            host.start(
                *(Path(sys.executable).with_name("ray"), "start", "--block", *role),
                *(f"--node-ip-address={host.address}", "--disable-usage-stats", "--num-cpus=2"),
                *("--object-store-memory=100000000", '--resources={"virtual_device": 2}'),
                env=dict(env) if number == 1 else {**env, "RAY_AUTH_MODE": "token"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + _RAY_STARTED_SECONDS
        while "Ray runtime started" not in log.read_text(encoding="utf-8"):
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.1)
    return address


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)
