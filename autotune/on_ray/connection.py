"""Connects to Ray: to the cluster at an address, or to one started on this machine."""

import contextlib
import dataclasses
import errno
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import ray

from autotune.cluster import Cluster
from autotune.errors import InputError, first_line
from autotune.ledger.interruption import signals_ignored
from autotune.on_ray.nodes import NODE_CPUS, VIRTUAL_DEVICE, check_capacity, device_resource
from autotune.on_ray.ray_internals import (
    RayNodes,
    head_address,
    head_answers,
    listening_on_loopback,
)

# A raylet takes 1 s of CPU time to start, and 100 MB.
_MOST_RAYLETS = 4
_CONNECT_TIMEOUT_SECONDS = 5.0
_HOST_AND_PORT = re.compile(r".*:\d+")
_CLIENT = "ray://"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """Address of the dashboard of a Ray cluster that is started here."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None: 8265, or the next free one."""


@contextlib.contextmanager
def ray_cluster(
    cluster: Cluster,
    *,
    address: str | None,
    dashboard: Dashboard | None = None,
    virtual: bool = False,
) -> Iterator[str | None]:
    """Connect to the Ray cluster at `address`, or start one here; yields the dashboard's URL.

    A cluster started here is shut down on exit. On a `virtual` cluster devices are only counted,
    and trials are simulated. `dashboard` None: a cluster started here has no dashboard. Raises
    ClusterTooSmall, and InputError where no Ray answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    nodes = None
    with _sigterm_handler_kept():
        if address is not None:
            _refuse_unreachable(address)
            try:
                context = ray.init(address=address, **quiet)
            except Exception as error:
                raise InputError(
                    f"cannot connect to {address!r}: {first_line(error)}", field="address"
                ) from None
        else:
            with listening_on_loopback(), _sigterm_interrupts():
                nodes = _start_local(cluster, dashboard=dashboard, virtual=virtual)
                context = ray.init(address=nodes.address, **quiet)
    try:
        if not virtual:
            check_capacity(cluster)
        url = context.dashboard_url
        yield f"http://{url}" if url and (dashboard or address) else None
    finally:
        with signals_ignored():
            with _sigterm_handler_kept():
                ray.shutdown()
            if nodes is not None:
                nodes.shutdown()


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
    if address == "local":
        raise InputError("must be that of a running Ray, got 'local'", field="address")
    client = address.startswith(_CLIENT)
    try:
        # Not what Ray makes of it: it replaces 127.0.0.1 by the address on the network.
        stated = _HOST_AND_PORT.fullmatch(address.removeprefix(_CLIENT))
        head = address.removeprefix(_CLIENT) if stated else head_address(address)
        host, _, port = head.rpartition(":")
        if not host or not 0 < int(port) < 65536:
            raise ValueError("it must be HOST:PORT with a port from 1 to 65535")
        bare = host.removeprefix("[").removesuffix("]")
        socket.create_connection((bare, int(port)), _CONNECT_TIMEOUT_SECONDS).close()
        # Ray's client has a protocol of its own.
        answers = client or head_answers(head, _CONNECT_TIMEOUT_SECONDS)
    except (OSError, OverflowError, ValueError) as error:
        raise InputError(
            f"cannot connect to {address!r}: {first_line(error)}", field="address"
        ) from None
    if not answers:
        raise InputError(
            f"the Ray cluster at {address!r} wants its token: set RAY_AUTH_MODE=token, and put the "
            "token into ~/.ray/auth_token or RAY_AUTH_TOKEN (`ray get-auth-token` on the head "
            "prints it)",
            field="address",
        )


def _start_local(cluster: Cluster, *, dashboard: Dashboard | None, virtual: bool) -> RayNodes:
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
        _refuse_taken(dashboard)
        head = {
            "include_dashboard": True,
            "dashboard_host": dashboard.host,
            "dashboard_port": dashboard.port,
        }
    nodes = RayNodes(initialize_head=True, head_node_args={**node, **head}, shutdown_at_exit=True)
    for _ in range(cluster.nodes - nodes_on_head):
        nodes.add_node(wait=False, **node)
    nodes.wait_for_nodes()
    return nodes


def _refuse_taken(dashboard: Dashboard) -> None:
    """Raise InputError where the dashboard cannot listen: Ray would try 50 ports, for minutes."""
    family = socket.AF_INET6 if ":" in dashboard.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((dashboard.host, dashboard.port or 0))
        except OSError as error:
            foreign = error.errno == errno.EADDRNOTAVAIL
            raise InputError(
                f"cannot listen on {dashboard.host}:{dashboard.port or ''}: {error.strerror}",
                field="dashboard_host" if foreign else "dashboard_port",
            ) from None
