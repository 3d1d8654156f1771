"""What a search opens to the network, and which clusters it refuses."""

import psutil
import pytest

from autotune.cluster import Cluster
from autotune.errors import InputError
from autotune.hardware import device_named
from autotune.on_ray.connection import Dashboard, ray_cluster

ONE_NODE = Cluster(nodes=1, gpus_per_node=2, device=device_named("cpu"))


def test_everything_that_is_started_here_listens_on_loopback_only() -> None:
    with ray_cluster(ONE_NODE, address=None, dashboard=Dashboard()) as url:
        assert url is not None and url.startswith("http://127.0.0.1:")
        this = psutil.Process()
        sockets = [
            (process.name(), socket.laddr.ip.removeprefix("::ffff:"))
            for process in [this, *this.children(recursive=True)]
            for socket in process.net_connections("inet")
            if socket.status == psutil.CONN_LISTEN
        ]
    assert {"gcs_server", "raylet"} <= {name for name, _ in sockets}
    assert [socket for socket in sockets if socket[1] not in ("127.0.0.1", "::1")] == []


def test_where_nothing_listens_it_says_so_at_once() -> None:
    with (
        pytest.raises(InputError, match=r"^address: cannot connect to '127\.0\.0\.1:1'"),
        ray_cluster(ONE_NODE, address="127.0.0.1:1"),
    ):
        pass
