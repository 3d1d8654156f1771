"""What a process of a trial finds on its node: the program, its port and its place."""

import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from autotune.trial.trial import TrialSpec
from trainables.command.recipe import Recipe

_PORT_SECONDS = 10.0


def problem_of_node(recipe: Recipe) -> str | None:
    """Why the command cannot run on this node."""
    if recipe.directory is not None and not os.path.isdir(recipe.directory):
        return f"the working directory {recipe.directory!r} is not on this node"
    if recipe.reader is not None:
        file = os.path.join(recipe.directory or ".", recipe.reader.rpartition(":")[0])
        if not os.path.isfile(file):
            return f"the file of the reader, {file!r}, is not on this node"
    program = recipe.argv[0]
    path = os.path.join(recipe.directory or ".", program) if "/" in program else program
    if "{" not in program and shutil.which(path, path=search_path()) is None:
        return f"the program {program!r} is not on this node"
    return None


def search_path() -> str:
    """PATH for the command: last the folder of this Python, which may not be an active environment
    but has torchrun and the like."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)))


def free_port(listening: int) -> None:
    """Close the reserved rendezvous socket; returns when its port can be bound again.

    The host process holds a copy until it has forked all processes of this node.
    """
    with socket.socket(fileno=listening) as reserved:
        address, family = reserved.getsockname(), reserved.family
    deadline = time.monotonic() + _PORT_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_server(address[:2], family=family).close()
            return
        except OSError:
            time.sleep(0.01)


def place(job: Mapping[str, Any], spec: TrialSpec, rank: int, local_rank: int) -> dict[str, Any]:
    """Values of the placeholders that differ between processes."""
    world = spec.layout.world_size
    nodes = -(-world // spec.cluster.gpus_per_node)
    per_process = world // job["world_size"]
    first = rank * per_process
    return {
        "rank": first,
        "local_rank": local_rank * per_process,
        "node_rank": first // (world // nodes),
        "master_addr": job["master_address"],
        "master_port": job["master_port"],
    }
