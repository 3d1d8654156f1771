"""Launch scripts, and the comment at the head of every file."""

import shlex
import textwrap
from collections.abc import Mapping, Sequence

from autotune.cluster import Cluster
from autotune.layout import Layout
from autotune.request import Request

_WIDTH = 98
_SCRIPT = """\
#!/usr/bin/env bash
{heading}
# Started once per node; further arguments are passed on.
set -euo pipefail
here="$(cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")" && pwd)"
{exports}exec {command} "$@"
"""


def heading(
    layout: Layout, request: Request, program: str, notes: Sequence[str] = (), *, mark: str = "#"
) -> str:
    """The layout, what the file was checked against and the notes, as lines of a comment."""
    paragraphs = [
        f"Layout {layout.describe()}",
        f"on {request.space.cluster.describe()}, for {program}.",
    ]
    if notes:
        paragraphs.append("Not expressed, or expressed otherwise:")
    lines = [line for text in paragraphs for line in textwrap.wrap(text, _WIDTH)]
    for note in notes:
        lines += textwrap.wrap(note, _WIDTH, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(f"{mark} {line}" for line in lines)


def script(comment: str, command: Sequence[str], *, variables: Mapping[str, str]) -> str:
    """A script that sets the variables and becomes the command; its words are quoted already."""
    return _SCRIPT.format(
        heading=comment,
        exports=exports(variables),
        command=" ".join(command),
    )


def exports(variables: Mapping[str, str]) -> str:
    """Lines that set environment variables."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def torchrun(cluster: Cluster) -> list[str]:
    """torchrun with its flags, one group of words each; virtual nodes are on one machine."""
    if cluster.nodes == 1 or cluster.device.kind == "cpu":
        return ["torchrun", "--standalone", f"--nproc-per-node {cluster.devices} \\\n "]
    return ["torchrun", *node_flags(cluster), f"--nproc-per-node {cluster.gpus_per_node} \\\n "]


def node_flags(cluster: Cluster) -> list[str]:
    """torchrun's flags by which the nodes of a cluster find each other."""
    return [
        f"--nnodes {cluster.nodes}",
        f'--node-rank "${{NODE_RANK:?0 to {cluster.nodes - 1}}}"',
        '--master-addr "${MASTER_ADDR:?address of node 0}"',
        '--master-port "${MASTER_PORT:-29500}"',
    ]
