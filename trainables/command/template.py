"""Writes a commented file to begin with, from the options that a training script has."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from autotune.inputs import read_text

# Usual names of options, by the placeholder that they take; dashes stand for underscores and dots.
_OPTIONS = {
    "tensor_parallel": (
        "--tensor-model-parallel-size --tensor-parallel-size --tensor-parallel --tp-size --tp "
        "--parallelism-tensor-parallel-degree"
    ),
    "pipeline_parallel": (
        "--pipeline-model-parallel-size --pipeline-parallel-size --pipeline-parallel --pp-size "
        "--pp --parallelism-pipeline-parallel-degree"
    ),
    "zero_stage": "--zero-stage --zero",
    "micro_batch_size": (
        "--micro-batch-size --mbs --per-device-train-batch-size --local-batch-size "
        "--training-local-batch-size --batch-size"
    ),
    "gradient_accumulation_steps": "--gradient-accumulation-steps --accumulation --grad-accum",
    "global_batch_size": "--global-batch-size --training-global-batch-size",
    "sequence_length": "--sequence-length --seq-length --seq-len --max-seq-length --block-size",
    "steps": "--steps --max-steps --train-iters --training-steps --num-steps",
    "seed": "--seed",
}
# The same of options without a value, which are there or not.
_FLAGS = {
    "activation_checkpointing": (
        "full",
        "--recompute --gradient-checkpointing --activation-checkpointing --checkpoint-activations",
    ),
    "sequence_parallel": ("true", "--sequence-parallel"),
    "torch_compile": ("true", "--torch-compile --compile"),
}
_NONE = {"activation_checkpointing": "none"}

_TORCHRUN = (
    "torchrun",
    "--nnodes {nodes}",
    "--node-rank {node_rank}",
    "--nproc-per-node {devices_per_node}",
    "--master-addr {master_addr}",
    "--master-port {master_port}",
)

_HEAD = """\
# How {script} is started for a layout, and how its figures are read.
#   autotune try --space tiny --command {file}
#   autotune run --space tiny --trainable command --command {file}
# All keys and placeholders: docs/your-script.md.

# Program and arguments; no shell is involved. Words in braces become the layout's values.
argv = [
{argv}
]
"""
_REST = """
# Started once on each node; "rank": once for each rank, with RANK, LOCAL_RANK and WORLD_SIZE.
processes = "node"

# Whose constants the predictions begin with: megatron, fsdp2, deepspeed, ... (autotune plan --help)
# trainer = "fsdp2"

# The values that the script knows; a dimension that is no placeholder above is fixed.
# [dimensions]
# activation_checkpointing = ["none", "full"]
"""
_REPORTED = """
# The script reports its steps by autotune.report.step.
"""
_FIGURES = """
# Lines of the log that have the figures: a regular expression whose first group is the number.
# The line with the speed ends a step. Or call autotune.report.step in the script, and delete this.
[figures]
step_seconds = {pattern = 'step time: ([\\d.]+) ms', scale = 0.001}
# tokens_per_second = {pattern = 'tokens/s: ([\\d,.]+)'}  # all devices; or ..._per_device
# loss = {pattern = 'loss: (\\S+)'}
# peak_memory_gib = {pattern = 'memory: ([\\d.]+) GiB'}
"""


def command_template(script: Path, file: Path) -> str:
    """The text of a TOML file that starts the script, written to `file`. Raises InputError."""
    code = read_text(script, what="script")
    program = os.path.relpath(script, file.parent)
    options = sorted(set(re.findall(r"(?<![\w-])--[A-Za-z][\w.-]*[A-Za-z0-9]", code)))
    is_python = script.suffix == ".py"
    words = [*(_TORCHRUN if is_python else ("bash",)), program]
    flags = dict(_flags(options))
    argv = [
        *(_line(word) for word in words),
        *(_line(f"{option} {{{name}}}") for name, option in _found(_OPTIONS, options)),
        *(_line(f"{{{name}}}") for name in flags),
        "    # " + ", ".join(f'"{{{name}}}"' for name in _OPTIONS if name not in _names(options)),
    ]
    text = _HEAD.format(script=script.name, file=shlex.quote(str(file)), argv="\n".join(argv))
    text += _REST
    for name, (value, option) in flags.items():
        text += f"\n[values.{name}]\n{_NONE.get(name, 'false')} = []\n"
        text += f"{value} = {json.dumps([option])}\n"
    return text + (_REPORTED if "autotune.report" in code else _FIGURES)


def _line(words: str) -> str:
    return "    " + ", ".join(json.dumps(word) for word in words.split(" ")) + ","


def _found(known: dict[str, str], options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a placeholder and the script's option for it."""
    for name, usual in known.items():
        for wanted in usual.split():
            spelled = [o for o in options if re.sub(r"[_.]", "-", o.lower()) == wanted]
            if spelled:
                yield name, spelled[0]
                break


def _flags(options: Sequence[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    known = {name: usual for name, (_, usual) in _FLAGS.items()}
    for name, option in _found(known, options):
        yield name, (_FLAGS[name][0], option)


def _names(options: Sequence[str]) -> set[str]:
    return {name for name, _ in _found(_OPTIONS, options)}
