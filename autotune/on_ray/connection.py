"""Connects to Ray: to the cluster at an address, or to one started on this machine."""

import contextlib
import dataclasses
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from autotune.cluster import Cluster
from autotune.errors import AutotuneError, HeadGone, InputError, first_line
from autotune.ledger.interruption import children_spared, signals_ignored
from autotune.on_ray.address import refuse_address_by_form
from autotune.on_ray.nodes import NODE_CPUS, VIRTUAL_DEVICE, check_capacity, device_resource
from autotune.on_ray.ports import LOOPBACK, refuse_taken
from autotune.on_ray.ray_internals import (
    RayNodes,
    head_address,
    head_answers,
    listening_on_loopback,
)
from autotune.on_ray.temporary_folder import refuse_long_path, temporary_folder

# A raylet takes 1 s of CPU time to start, and 100 MB.
_MOST_RAYLETS = 4
_CONNECT_TIMEOUT_SECONDS = 5.0
# Ray's files in the folder that is given to it. Its own names of sessions are 40 characters longer,
# and the paths of sockets must be short.
_SESSION_NAME = "session"
_SESSION = Path("ray", _SESSION_NAME)
_LONGEST_SOCKET = Path("sockets", "plasma_store_10")
_HOST_AND_PORT = re.compile(r".*:\d+")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """Address of the dashboard of a Ray cluster that is started here."""

    host: str = LOOPBACK
    port: int | None = None
    """None: 8265, or the next free one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A connected Ray cluster."""

    dashboard_url: str | None
    metrics_url: str | None
    """Where Prometheus finds the metrics of a Ray started here; None: nobody asked for a port."""
    kept_logs: Path | None
    """Folder of the logs of a Ray started here, where they are kept."""

    @property
    def urls(self) -> dict[str, str]:
        """What can be opened, by what it is."""
        urls = {"Ray dashboard": self.dashboard_url, "metrics for Prometheus": self.metrics_url}
        return {what: url for what, url in urls.items() if url is not None}


@contextlib.contextmanager
def ray_cluster(
    cluster: Cluster,
    *,
    address: str | None,
    dashboard: Dashboard | None = None,
    metrics_port: int | None = None,
    virtual: bool = False,
    keep_logs: bool = False,
) -> Iterator[Connection]:
    """Connect to the Ray cluster at `address`, or start one here.

    A cluster started here is shut down on exit, and its logs are removed unless `keep_logs`. On a
    `virtual` cluster devices are only counted, and trials are simulated. `dashboard` None: a
    cluster started here has no dashboard. `metrics_port` is where it serves its metrics; None: any.
    Raises ClusterTooSmall, and InputError where no Ray
    answers at the address, none can be started, or no temporary files can be written.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    keep_logs = keep_logs and address is None
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_folder(keep=keep_logs))
        if address is not None:
            context = stack.enter_context(_joined(address))
        else:
            logs = folder / _SESSION / "logs" if keep_logs else None
            context = stack.enter_context(
                _started(
                    cluster,
                    folder,
                    dashboard=dashboard,
                    metrics_port=metrics_port,
                    virtual=virtual,
                    logs=logs,
                )
            )
        if not virtual:
            check_capacity(cluster)
        url = context.dashboard_url
        serves_metrics = address is None and metrics_port is not None
        yield Connection(
            dashboard_url=f"http://{url}" if url and (dashboard or address) else None,
            metrics_url=f"http://{LOOPBACK}:{metrics_port}/metrics" if serves_metrics else None,
            kept_logs=folder / _SESSION / "logs" if keep_logs else None,
        )


@contextlib.contextmanager
def _joined(address: str) -> Iterator[Any]:
    """The context of a connection to the cluster at the address."""
    with _sigterm_handler_kept():
        _refuse_unreachable(address)
        try:
            context = _connected(address)
        except Exception as error:
            raise InputError(
                f"cannot connect to {address!r}: {first_line(error)}", field="address"
            ) from None
    try:
        yield context
    finally:
        _disconnect()


@contextlib.contextmanager
def _started(
    cluster: Cluster,
    folder: Path,
    *,
    dashboard: Dashboard | None,
    metrics_port: int | None,
    virtual: bool,
    logs: Path | None,
) -> Iterator[Any]:
    """The context of a connection to a Ray that is started here, with its files in `folder`."""
    refuse_long_path(folder / _SESSION / _LONGEST_SOCKET)
    # Ray's default folder is open to all users, and it notes there which cluster is the newest.
    with _variable("RAY_TMPDIR", str(folder)):
        try:
            with _sigterm_handler_kept(), listening_on_loopback(), _sigterm_interrupts():
                nodes = _start_local(
                    cluster, dashboard=dashboard, metrics_port=metrics_port, virtual=virtual
                )
                context = _connected(nodes.address)
        except AutotuneError:
            raise
        except Exception as error:
            where = "`keep_ray_logs` keeps its logs" if logs is None else f"its logs are in {logs}"
            raise InputError(
                f"Ray cannot be started on this machine: {first_line(error)} ({where})"
            ) from None
        graceful = True
        try:
            yield context
        except HeadGone:
            graceful = False  # nodes wait for the head when they end
            raise
        finally:
            _disconnect()
            with signals_ignored():
                for node in nodes.list_all_nodes():
                    nodes.remove_node(node, allow_graceful=graceful)
                nodes.shutdown()


def _connected(address: str) -> Any:
    """Connect, and show no output of Ray's processes."""
    return ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)


def _disconnect() -> None:
    with signals_ignored(), _sigterm_handler_kept():
        ray.shutdown()


@contextlib.contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Restore the SIGTERM handler, which Ray replaces: when connecting by one that exits silently,
    when disconnecting by the default one, which would kill this process during its clean-up."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside, also for processes that are started there."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name)
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """While Ray starts, its own handler turns SIGTERM into SystemExit: here KeyboardInterrupt."""
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None


def _refuse_unreachable(address: str) -> None:
    """Raise InputError where no Ray answers at the address, or Ray refuses the token.

    `ray.init` would retry for minutes and print its own messages.
    """
    refuse_address_by_form(address)
    is_stated = _HOST_AND_PORT.fullmatch(address) is not None
    taken_as = ""
    try:
        answers = not is_stated or _listens_and_answers(address)
        # Ray replaces 127.0.0.1 by this machine's address on the network.
        head = head_address(address)
        if head != address:
            taken_as = f", which Ray takes as {head}" if is_stated else ""
            answers = answers and _listens_and_answers(head)
    except (OSError, OverflowError, ValueError) as error:
        raise InputError(
            f"cannot connect to {address!r}{taken_as}: {first_line(error)}", field="address"
        ) from None
    if not answers:
        raise InputError(
            f"the Ray cluster at {address!r} wants its token: set RAY_AUTH_MODE=token, and put the "
            "token into ~/.ray/auth_token or RAY_AUTH_TOKEN (`ray get-auth-token` on the head "
            "prints it)",
            field="address",
        )


def _listens_and_answers(head: str) -> bool:
    """False where the head at HOST:PORT refuses the token. Raises OSError where none answers, and
    ValueError for an invalid address."""
    host, _, port = head.rpartition(":")
    if not host or not 0 < int(port) < 65536:
        raise ValueError("it must be HOST:PORT with a port from 1 to 65535")
    bare = host.removeprefix("[").removesuffix("]")
    socket.create_connection((bare, int(port)), _CONNECT_TIMEOUT_SECONDS).close()
    return head_answers(head, _CONNECT_TIMEOUT_SECONDS)


def _start_local(
    cluster: Cluster, *, dashboard: Dashboard | None, metrics_port: int | None, virtual: bool
) -> RayNodes:
    """Start Ray on this machine: the head is node 0, every further node is another raylet.

    Many virtual nodes are put on the head, which then has the devices of all of them.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    nodes_on_head = cluster.nodes if virtual and cluster.nodes > _MOST_RAYLETS else 1
    devices: dict[str, Any] = {"resources": {VIRTUAL_DEVICE: nodes_on_head * cluster.gpus_per_node}}
    if device_resource(cluster, virtual=virtual) == "GPU":
        devices = {"num_gpus": cluster.gpus_per_node}
    node = {
        "num_cpus": nodes_on_head * NODE_CPUS + 1,
        "object_store_memory": 100 * 2**20,
        **devices,
    }
    head: dict[str, Any] = {"include_dashboard": False, "dashboard_port": None}
    if dashboard is not None:
        refuse_taken(dashboard.host, dashboard.port, "dashboard")
        head = {
            "include_dashboard": True,
            "dashboard_host": dashboard.host,
            "dashboard_port": dashboard.port,
        }
    if metrics_port is not None:
        refuse_taken(LOOPBACK, metrics_port, "metrics")
        head["metrics_export_port"] = metrics_port
    with children_spared():
        nodes = RayNodes(
            initialize_head=True,
            head_node_args={**node, **head, "session_name": _SESSION_NAME},
            shutdown_at_exit=True,
        )
    for _ in range(cluster.nodes - nodes_on_head):
        with children_spared():
            nodes.add_node(wait=False, **node)
    nodes.wait_for_nodes()
    return nodes
