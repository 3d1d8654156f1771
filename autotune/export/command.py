"""Export for the user's own training command: launch.sh with the values of the layout filled in."""

import re
import shlex

from autotune.cluster import Cluster
from autotune.export._format import Export, Format
from autotune.export._script import heading
from autotune.layout import Layout
from autotune.request import Request
from autotune.trial.trainable import CommandLine

# Variables of the script by what neither the command nor the layout says. A placeholder is a name
# between null characters, which arguments cannot have.
_VARIABLES = {
    "steps": "STEPS",
    "rank": "RANK",
    "local_rank": "LOCAL_RANK",
    "node_rank": "NODE_RANK",
    "master_addr": "MASTER_ADDR",
    "master_port": "MASTER_PORT",
    "scratch_directory": "SCRATCH",
    "log_directory": "LOGS",
}
_SCRIPT = """\
#!/usr/bin/env bash
{heading}
# Started once per node; further arguments are passed on.
set -euo pipefail
{directory}STEPS="${{STEPS:-20}}"
NODE_RANK="${{NODE_RANK:{node}}}"
export MASTER_ADDR="${{MASTER_ADDR:{master}}}" MASTER_PORT="${{MASTER_PORT:-29500}}"
{start}"""
_SCRATCH = 'SCRATCH="$(mktemp -d)"\n'
_LOGS = 'LOGS="${LOGS:-$PWD}"\n'
_PER_NODE = """\
LOCAL_RANK=0 RANK=$((NODE_RANK * {ranks}))
{folders}{files}{exports}exec {argv} "$@"
"""
# The first rank that fails ends the others.
_PER_RANK = """\
export WORLD_SIZE={world_size} LOCAL_WORLD_SIZE={ranks}
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
for ((LOCAL_RANK = 0; LOCAL_RANK < {ranks}; LOCAL_RANK++)); do
  (
    export LOCAL_RANK RANK=$((NODE_RANK * {ranks} + LOCAL_RANK))
{folders}{files}{exports}    exec {argv} "$@"
  ) &
done
for ((ended = 0; ended < {ranks}; ended++)); do wait -n; done
"""


def _export(layout: Layout, request: Request) -> Export:
    """launch.sh, which starts the command as the trials did."""
    make = request.description.command_line
    assert make is not None, "this format is that of trainables which run a command"
    marks = {name: f"\0{variable}\0" for name, variable in _VARIABLES.items()}
    line = make(request.trainable_setup, layout, {"seed": str(request.seed), **marks})
    cluster = request.space.cluster
    several = cluster.nodes > 1
    content = _SCRIPT.format(
        heading=heading(layout, request, "the training command of the trials"),
        directory=f"cd -- {shlex.quote(line.directory)}\n" if line.directory else "",
        node=f"?0 to {cluster.nodes - 1}" if several else "-0",
        master="?address of node 0" if several else "-127.0.0.1",
        start=_start(line, cluster),
    )
    return Export(files={"launch.sh": content})


def _start(line: CommandLine, cluster: Cluster) -> str:
    indent = "    " if line.per_rank else ""
    texts = [*line.argv, *line.env.values(), *line.files.values()]
    folders = [
        indent + made
        for variable, made in (("SCRATCH", _SCRATCH), ("LOGS", _LOGS))
        if (variable == "SCRATCH" and line.files) or any(f"\0{variable}\0" in t for t in texts)
    ]
    files = [
        f'{indent}printf %s {_quoted(text)} > "$SCRATCH"/{shlex.quote(name)}\n'
        for name, text in line.files.items()
    ]
    exports = [f"{indent}export {name}={_quoted(value)}\n" for name, value in line.env.items()]
    return (_PER_RANK if line.per_rank else _PER_NODE).format(
        ranks=cluster.gpus_per_node,
        world_size=cluster.devices,
        folders="".join(folders),
        files="".join(files),
        exports="".join(exports),
        argv=" ".join(map(_quoted, line.argv)),
    )


def _quoted(word: str) -> str:
    """The word as bash reads it; variables that were marked are expanded."""
    pieces = re.split("\0([A-Z_]+)\0", word)
    texts = [shlex.quote(piece) if piece else "" for piece in pieces[::2]]
    variables = [f'"${{{name}}}"' for name in pieces[1::2]]
    pairs = zip(texts, [*variables, ""], strict=True)
    return "".join(text + variable for text, variable in pairs) or "''"


FORMAT = Format(
    checked_against="the training command of the trials", export=_export, starts_trainable=True
)
