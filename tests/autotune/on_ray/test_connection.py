"""What a search opens to the network, and which clusters it refuses."""

import os
import socket
import tempfile
import urllib.request
from pathlib import Path

import psutil
import pytest
import ray

from autotune.cluster import Cluster
from autotune.errors import InputError
from autotune.hardware import device_named
from autotune.on_ray import connection
from autotune.on_ray.connection import Dashboard, ray_cluster
from autotune.on_ray.ray_internals import RayNodes, listening_on_loopback

ONE_NODE = Cluster(nodes=1, gpus_per_node=2, device=device_named("cpu"))


def test_everything_that_is_started_here_listens_on_loopback_only() -> None:
    with ray_cluster(ONE_NODE, address=None, dashboard=Dashboard()) as connection:
        url = connection.dashboard_url
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


def test_files_of_a_ray_started_here_are_private_and_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no other Ray of this machine is told of it, nor its files touched."""
    with tempfile.TemporaryDirectory() as short:  # sockets are in it
        parent = Path(short)
        monkeypatch.setenv("TMPDIR", short)
        monkeypatch.setattr(tempfile, "tempdir", None)
        others = parent / "ray" / "session_of_others"
        others.mkdir(parents=True)
        newest = parent / "ray" / "ray_current_cluster"
        newest.write_text("192.0.2.1:6379")
        with ray_cluster(ONE_NODE, address=None):
            (folder,) = parent.glob("autotune.*")
            assert folder.stat().st_mode & 0o777 == 0o700
            assert (folder / "ray" / "session" / "logs" / "gcs_server.out").exists()
            assert "RAY_TMPDIR" in os.environ
        assert "RAY_TMPDIR" not in os.environ
        assert list(parent.iterdir()) == [parent / "ray"] and others.exists()
        assert newest.read_text() == "192.0.2.1:6379"
        with ray_cluster(ONE_NODE, address=None, keep_logs=True) as connection:
            pass
        assert connection.kept_logs is not None
        assert (connection.kept_logs / "gcs_server.out").exists()


def test_where_nothing_listens_it_says_so_at_once() -> None:
    with (
        pytest.raises(InputError, match=r"^address: cannot connect to '127\.0\.0\.1:1'"),
        ray_cluster(ONE_NODE, address="127.0.0.1:1"),
    ):
        pass


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        ("127.0.0.1:1", "address: cannot connect to 'auto': .*refused"),  # its head is gone
        ("local", "address must be .* got 'auto', .*='local'"),
        ("ray://127.0.0.1:10001", "address must be .* got 'auto', .*='ray://127.0.0.1:10001'"),
    ],
)
def test_auto_means_the_variable_which_is_refused_like_an_address(
    variable: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    with (
        pytest.raises(InputError, match=f"^{sentence}"),
        ray_cluster(ONE_NODE, address="auto"),
    ):
        pass


def test_without_an_address_a_search_has_a_ray_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other cluster the environment names."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with ray_cluster(ONE_NODE, address=None):
        names = {process.name() for process in psutil.Process().children(recursive=True)}
    assert "gcs_server" in names


def test_an_address_that_ray_replaces_by_another_is_one_sentence() -> None:
    """Ray takes 127.0.0.1 as the network's address, where a Ray for this machine only is not."""
    if ray.util.get_node_ip_address() == "127.0.0.1":
        pytest.skip("this machine has no network")
    with listening_on_loopback():
        head = {"include_dashboard": False, "dashboard_port": None}
        nodes = RayNodes(initialize_head=True, head_node_args=head)
    try:
        with (
            pytest.raises(InputError, match=f"'{nodes.address}', which Ray takes as .*refused"),
            ray_cluster(ONE_NODE, address=nodes.address),
        ):
            pass
    finally:
        nodes.shutdown()


def test_what_listens_there_and_is_no_ray_is_one_sentence_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "_CONNECT_TIMEOUT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with (
            pytest.raises(
                InputError, match=f"^address: cannot connect to '{address}': it does not"
            ),
            ray_cluster(ONE_NODE, address=address),
        ):
            pass


def test_a_dashboard_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"^dashboard_port: cannot listen on 127.0.0.1:{port}"),
            ray_cluster(ONE_NODE, address=None, dashboard=Dashboard(port=port)),
        ):
            pass


def test_a_second_dashboard_takes_the_next_free_port() -> None:
    """The default port is taken, as by another search on this machine."""
    try:
        taken = socket.create_server(("127.0.0.1", 8265))
    except OSError:
        taken = None  # somebody listens there already
    try:
        with ray_cluster(ONE_NODE, address=None, dashboard=Dashboard()) as connection:
            url = connection.dashboard_url
            assert url is not None and int(url.rpartition(":")[2]) > 8265
    finally:
        if taken is not None:
            taken.close()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ray://127.0.0.1:1", "must be HOST:PORT of the cluster's GCS, .* got 'ray://127.0.0.1:1'"),
        ("http://127.0.0.1:8265", "must be HOST:PORT of the cluster's GCS, such as HOST:6379"),
        ("local", "address must be that of a running Ray, got 'local'"),
        (":6379", "it must be HOST:PORT with a port from 1 to 65535"),
        ("127.0.0.1:99999", "it must be HOST:PORT with a port from 1 to 65535"),
        ("[::1]:1", r"cannot connect to '\[::1\]:1': .*(refused|assign|unreachable)"),
        ("no.such.host.invalid:6379", "cannot connect to 'no.such.host.invalid:6379'"),
    ],
)
def test_other_addresses_are_one_sentence_too(address: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence), ray_cluster(ONE_NODE, address=address):
        pass


def test_a_dashboard_host_that_is_not_of_this_machine_is_one_sentence() -> None:
    elsewhere = Dashboard(host="192.0.2.1")
    with (
        pytest.raises(InputError, match=r"^dashboard_host: cannot listen on 192\.0\.2\.1:"),
        ray_cluster(ONE_NODE, address=None, dashboard=elsewhere),
    ):
        pass


def test_metrics_are_served_at_the_port_that_is_given_on_loopback_only() -> None:
    """Without a dashboard, too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"^metrics_port: cannot listen on 127.0.0.1:{port}"),
            ray_cluster(ONE_NODE, address=None, metrics_port=port),
        ):
            pass
    with ray_cluster(ONE_NODE, address=None, metrics_port=port) as connection:
        assert connection.urls == {"metrics for Prometheus": f"http://127.0.0.1:{port}/metrics"}
        with urllib.request.urlopen(connection.urls["metrics for Prometheus"], timeout=30) as page:
            assert page.status == 200
        listening = {
            found.laddr.ip.removeprefix("::ffff:")
            for process in psutil.Process().children(recursive=True)
            for found in process.net_connections("inet")
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port
        }
        assert listening == {"127.0.0.1"}
