"""Starts real trainings under torchrun, for tests."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "sequence_length": 16,
    "global_batch_size": 8,
}
TRAINING = "trainables.deepspeed_llm.training"


@dataclasses.dataclass(frozen=True)
class Ended:
    """A training that has ended."""

    status: int
    steps: list[dict[str, Any]]
    summary: dict[str, Any] | None
    errors: str

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.steps]


def command(
    layout: Mapping[str, Any], *arguments: object, model: Mapping[str, Any] = MODEL
) -> list[str]:
    """The words that start the training of a layout under torchrun."""
    sizes = ("tensor_parallel", "pipeline_parallel", "data_parallel")
    ranks = 1
    for size in sizes:
        ranks *= layout.get(size, 1)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    options = ["--layout", json.dumps(dict(layout)), "--model", json.dumps(dict(model))]
    words = [sys.executable, *launcher, "-m", TRAINING, "--device", "cpu", *options]
    return [*words, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def trained(
    layout: Mapping[str, Any], *arguments: object, model: Mapping[str, Any] = MODEL
) -> Ended:
    return ended(command(layout, *arguments, model=model))


def ended(words: list[str], **variables: str) -> Ended:
    """Run a training to its end."""
    process = subprocess.run(
        words, capture_output=True, text=True, timeout=250, env={**environment(), **variables}
    )
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    summary = lines.pop() if lines and lines[-1].get("summary") else None
    return Ended(process.returncode, lines, summary, process.stderr)


def rewound(directory: Path, step: int, to: Path) -> Path:
    """A copy of the checkpoints as they were after so many steps."""
    shutil.copytree(directory, to)
    (to / "latest").write_text(f"global_step{step}")
    return to
