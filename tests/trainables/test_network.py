"""Address and network interface of the rendezvous and of the ranks' connections."""

import psutil

from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.network import network_environment


def test_the_interface_is_the_one_that_carries_the_address() -> None:
    assert network_environment("127.0.0.1") == {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "=lo",
    }
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family.name == "AF_INET":
                assert network_environment(entry.address)["GLOO_SOCKET_IFNAME"] == name
    assert network_environment("203.0.113.77") == {}, "of no interface: gloo and NCCL choose"


def test_an_interface_that_the_user_names_is_kept() -> None:
    env = {"GLOO_SOCKET_IFNAME": "mine", "PYTHONPATH": "/theirs"}
    with LocalHost(device_kind="cpu", env=env, program="code") as host:
        seen = psutil.Process(host._process.pid).environ()
    assert seen["GLOO_SOCKET_IFNAME"] == "mine"
    assert seen["NCCL_SOCKET_IFNAME"] == "=lo"
    assert seen["PYTHONPATH"].endswith(":/theirs")


def test_the_rendezvous_listens_on_one_address(host: LocalHost) -> None:
    address, port = host.listen()
    listening = {
        (socket.laddr.ip, socket.laddr.port)
        for socket in psutil.Process(host._process.pid).net_connections("inet")
    }
    assert (address, port) == ("127.0.0.1", port)
    assert listening == {("127.0.0.1", port)}
