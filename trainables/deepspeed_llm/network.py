"""Which network interface gloo and NCCL use, and the variables of a rank. Free of torch."""

import os
import socket

import psutil

from autotune.trial.deepspeed_config import worker_environment
from autotune.trial.trial import TrialSpec
from trainables.deepspeed_llm.launched import Launched


def network_environment(address: str) -> dict[str, str]:
    """Variables that make gloo and NCCL use the network interface with the node's address.

    By default gloo uses the interface that the host name resolves to, and NCCL the first that is
    up. Empty if no interface has the address.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            # "=" for an exact match: NCCL reads a bare name as a prefix, so eth1 would match eth10.
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
    return {}


def set_environment(spec: TrialSpec, launched: Launched) -> None:
    """Set the variables of a rank that torchrun started, without overriding the user's.

    Call before importing torch.
    """
    variables = {
        **worker_environment(spec.cluster.device.kind),
        **network_environment(_own_address(launched)),
    }
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _own_address(launched: Launched) -> str:
    """This machine's address in the network of the rendezvous, as in a search's trials."""
    if launched.local_world_size == launched.world_size:
        return "127.0.0.1"
    try:
        family, *_, address = socket.getaddrinfo(
            launched.master_addr, launched.master_port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, socket.SOCK_DGRAM) as route:
            route.connect(address)  # sends nothing: it only chooses the interface
            return str(route.getsockname()[0])
    except OSError:  # torch says what is wrong with the address
        return ""
