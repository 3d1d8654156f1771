"""Export for this project's DeepSpeed worker: DeepSpeed configuration and torchrun script."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from autotune.cluster import Cluster
from autotune.errors import InputError
from autotune.export._format import Export, Format
from autotune.hardware import known_devices
from autotune.layout import Layout, why_illegal
from autotune.request import Request
from autotune.trial.deepspeed_config import deepspeed_config, worker_environment
from autotune.trial.trial import to_json

_SCRIPT = """\
#!/usr/bin/env bash
# Trains the layout {words}
# on {cluster}. Started once per node.
# Options are passed on; `python -m {worker} --help` lists them:
#   ./launch.sh --data tokens.npy --steps 10000 --checkpoints DIR --save-every 500
#   ... --resume-from DIR
# PYTHON names another interpreter than python3. Variables that are set already are kept.
set -euo pipefail
here="$(cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")" && pwd)"
python="${{PYTHON:-python3}}"
check='from importlib.util import find_spec as f; f("deepspeed").name, f("{worker}").name'
"$python" -c "$check" > /dev/null 2>&1 || {{
  echo "error: DeepSpeed and autotune-layouts must be installed for $python (or set PYTHON)" >&2
  exit 2
}}
{exports}
training=(-m {worker}
  --layout "$here/layout.json" --model "$here/model.json"
  --deepspeed-config "$here/deepspeed.json" {arguments}
  --steps "${{STEPS:-20}}" "$@")
# Bad input is one line here, and not the failure of every rank.
"$python" "${{training[@]}}" --dry-run > /dev/null
exec "$python" -m torch.distributed.run {rendezvous} \\
  --nproc-per-node {ranks} "${{training[@]}}"
"""
_WORKER = "trainables.deepspeed_llm.training"
_ONE_MACHINE = "--standalone"
_MANY_NODES = (
    '--nnodes {nodes} --node-rank "${{NODE_RANK:?0 to {last}}}" '
    '--master-addr "${{MASTER_ADDR:?address of node 0}}" --master-port "${{MASTER_PORT:-29500}}"'
)


def _export(layout: Layout, request: Request) -> Export:
    """deepspeed.json, layout.json, model.json and launch.sh."""
    space = request.space
    if reason := why_illegal(layout, space.model, space.precision):
        raise InputError(f"the DeepSpeed worker cannot train the layout: {reason}")
    is_gpu = space.cluster.device.kind == "gpu"
    config = deepspeed_config(
        layout, space.model, precision=space.precision, overlap_communication=is_gpu
    )
    model = to_json(space.model)
    assert isinstance(model, dict)
    return Export(
        files={
            "deepspeed.json": _json(config),
            "layout.json": _json(layout.columns()),
            "model.json": _json({**model, "precision": space.precision}),
            "launch.sh": _script(layout, request),
        }
    )


def _script(layout: Layout, request: Request) -> str:
    cluster = request.space.cluster
    environment = {**worker_environment(cluster.device.kind), **request.env}
    exports = "\n".join(
        f'[ -n "${{{name}+set}}" ] || export {name}={shlex.quote(value)}'
        for name, value in environment.items()
    )
    rendezvous, ranks = _rendezvous(cluster)
    return _SCRIPT.format(
        words=layout.describe(),
        worker=_WORKER,
        cluster=cluster.describe(),
        exports=exports,
        rendezvous=rendezvous,
        ranks=ranks,
        arguments=" ".join(_arguments(request)),
    )


def _rendezvous(cluster: Cluster) -> tuple[str, int]:
    """torchrun's rendezvous flags, and ranks per machine; virtual nodes are on one machine."""
    if cluster.nodes == 1 or cluster.device.kind == "cpu":
        return _ONE_MACHINE, cluster.devices
    flags = _MANY_NODES.format(nodes=cluster.nodes, last=cluster.nodes - 1)
    return flags, cluster.gpus_per_node


def _arguments(request: Request) -> list[str]:
    device = request.space.cluster.device
    arguments = ["--device", device.kind, "--seed", str(request.seed)]
    if device.kind == "gpu" and device.name in known_devices():
        arguments += ["--gpu", device.name]
    if request.data is not None:
        arguments += ["--data", shlex.quote(request.data)]
    return [*arguments, "--synthetic-data"] if request.synthetic_data else arguments


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


FORMAT = Format(checked_against="deepspeed 0.19.8", export=_export, starts_trainable=True)
