"""The connection to Ray: reach the cluster at an address, or start one on this machine."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import ray
from ray._private import ray_constants
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.cluster_utils import Cluster as RayNodes
from ray.core.generated import gcs_service_pb2
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from autotune.cluster import Cluster
from autotune.errors import InputError, first_line
from autotune.ledger.interruption import signals_ignored
from autotune.on_ray.nodes import NODE_CPUS, VIRTUAL_DEVICE, check_capacity, device_resource

# A raylet takes a second of a core to start, and 100 MB.
_MOST_RAYLETS = 4
_CONNECT_TIMEOUT_SECONDS = 5.0


@contextlib.contextmanager
def ray_cluster(
    cluster: Cluster,
    *,
    address: str | None,
    dashboard_host: str | None = None,
    virtual: bool = False,
) -> Iterator[str | None]:
    """Connect to the Ray at `address`, or start one here; yields the dashboard's address.

    What was started here is shut down on the way out. A `virtual` cluster has no devices, whatever
    they are called: trials on it are simulated. The dashboard of a cluster that is started here
    listens on `dashboard_host`; None: it has none. Raises ClusterTooSmall, and InputError where
    nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    nodes = None
    with _sigterm_handler_kept():
        if address is not None:
            _refuse_unreachable(address)
            _refuse_without_token(address)
            try:
                context = ray.init(address=address, **quiet)
            except Exception as error:
                raise InputError(
                    f"cannot connect to {address!r}: {first_line(error)}", field="address"
                ) from None
        else:
            with _on_loopback():
                nodes = _start_local(cluster, dashboard_host=dashboard_host, virtual=virtual)
                context = ray.init(address=nodes.address, **quiet)
    try:
        if not virtual:
            check_capacity(cluster)
        url = context.dashboard_url
        yield f"http://{url}" if url and (dashboard_host or address) else None
    finally:
        with signals_ignored():
            with _sigterm_handler_kept():
                ray.shutdown()
            if nodes is not None:
                nodes.shutdown()


@contextlib.contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Undo what Ray does: connecting, it takes SIGTERM for itself, to leave without a word; and
    disconnecting, it gives SIGTERM back to the kernel, which ends the process in its tidying."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _refuse_unreachable(address: str) -> None:
    """Raise InputError where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like: Ray looks it up
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot connect to {address!r}: {error}", field="address") from None


def _refuse_without_token(address: str) -> None:
    """Raise InputError where the cluster wants another token: Ray would try for 20 s, then not say.

    Anything else that is wrong is left to Ray.
    """
    if "://" in address:
        return  # Ray's client connects in a way of its own
    messages: Any = gcs_service_pb2  # generated: its types are not known
    try:
        head = canonicalize_bootstrap_address_or_die(address)
        channel = init_grpc_channel(head)
        with contextlib.closing(channel):
            NodeInfoGcsServiceStub(channel).GetClusterId(
                messages.GetClusterIdRequest(), timeout=_CONNECT_TIMEOUT_SECONDS
            )
        return
    except ray.exceptions.AuthenticationError:
        pass  # none was found
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.UNAUTHENTICATED:
            return
    except (ConnectionError, ValueError):
        return
    raise InputError(
        f"the Ray cluster at {address!r} wants its token: set RAY_AUTH_MODE=token, and "
        "put the token into ~/.ray/auth_token or RAY_AUTH_TOKEN (`ray get-auth-token` on the head "
        "prints it)",
        field="address",
    )


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Have Ray listen on 127.0.0.1 only, as it does by itself on macOS and Windows.

    On Linux it would listen on every network, and whoever reaches it may run code.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _start_local(cluster: Cluster, *, dashboard_host: str | None, virtual: bool) -> RayNodes:
    """Ray on this machine: the head is the first node, the others are further raylets.

    Where they would be many (and have no devices anyway), the head carries them all.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    carried = cluster.nodes if virtual and cluster.nodes > _MOST_RAYLETS else 1
    devices: dict[str, Any] = {"resources": {VIRTUAL_DEVICE: carried * cluster.gpus_per_node}}
    if device_resource(cluster, virtual=virtual) == "GPU":
        devices = {"num_gpus": cluster.gpus_per_node}
    node = {
        "num_cpus": carried * NODE_CPUS + 1,
        "object_store_memory": 100 * 2**20,
        **devices,
    }
    head = {
        "include_dashboard": dashboard_host is not None,
        "dashboard_host": dashboard_host or "127.0.0.1",
    }
    nodes = RayNodes(initialize_head=True, head_node_args={**node, **head}, shutdown_at_exit=True)
    for _ in range(cluster.nodes - carried):
        nodes.add_node(wait=False, **node)
    nodes.wait_for_nodes()
    return nodes
