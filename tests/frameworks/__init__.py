"""Exports are read back by the parsers and dataclasses of the frameworks themselves."""

import importlib.metadata
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from autotune.cluster import Cluster
from autotune.errors import InputError
from autotune.export import export_layout, format_named
from autotune.hardware import device_named
from autotune.layout import DIMENSIONS, Layout
from autotune.models import model_from_mapping
from autotune.request import Request
from autotune.space import SearchSpace
from tests.conftest import REPOSITORY

FOLDER = Path(__file__).parent
CONFIGS = REPOSITORY / "tests/autotune/models/configs"
ARCHITECTURES = (
    "llama-3.1-8b", "llama-3.2-1b", "mistral-7b-v0.1", "qwen2.5-7b", "qwen3-8b", "qwen3-30b-a3b",
    "mixtral-8x7b", "deepseek-v2-lite", "phi-4", "gpt2", "pythia-1.4b", "olmo-2-7b", "gemma-2-2b",
)  # fmt: skip
"""A published model of each architecture, by the name of its config."""

# Of thousands, so many are tried; those that cover every value are read back.
_SAMPLE = 600

# What is not in the environment of the tests, as it asks for other versions of its dependencies.
FRAMEWORKS = REPOSITORY / ".venv" / "frameworks"


def request_of(name: str, device: str = "h100", **model: Any) -> Request:
    """A request for 8 devices that train such a model."""
    config = json.loads((CONFIGS / f"{name}.json").read_text("utf-8"))
    fields = {**config, "sequence_length": 1024, "global_batch_size": 64, **model}
    precision = fields.pop("precision", None)
    if precision is not None:
        fields["dtype"] = {"fp32": "float32", "bf16": "bfloat16"}[precision]
        fields.pop("torch_dtype", None)
    return Request(
        space=SearchSpace(
            name=name,
            model=model_from_mapping(fields),
            cluster=Cluster(nodes=1, gpus_per_node=8, device=device_named(device)),
            zero_stage=(0, 1, 2, 3),
            micro_batch_size=(1, 2),
            torch_compile=(False, True),
        ),
        trainable="simulated",
        search="guided",
        max_trials=1,
    )


def covering(layouts: Sequence[Layout]) -> list[Layout]:
    """Some of the layouts, which together have every value of every dimension."""
    left = {(name, getattr(layout, name)) for layout in layouts for name in DIMENSIONS}
    chosen = []
    while left:
        best = max(layouts, key=lambda it: len(left & {(n, getattr(it, n)) for n in DIMENSIONS}))
        left -= {(name, getattr(best, name)) for name in DIMENSIONS}
        chosen.append(best)
    return chosen


def exported(
    folder: Path, form: str, requests: Sequence[Request]
) -> Iterator[tuple[Path, Layout, Request]]:
    """The exports of covering layouts that the format can express, each in a folder."""
    for request in requests:
        layouts = request.space.layouts()
        some = random.Random(0).sample(layouts, min(_SAMPLE, len(layouts)))
        expressed = [layout for layout in some if is_expressed(form, layout, request)]
        for index, layout in enumerate(covering(expressed)):
            out = folder / f"{request.space.name}-{request.space.precision}-{index}"
            export_layout(out, layout, request, form)
            yield out, layout, request


def is_expressed(form: str, layout: Layout, request: Request) -> bool:
    """Whether the format has this layout of this model."""
    try:
        format_named(form).export(layout, request)
    except InputError:
        return False
    return True


def started(folder: Path, program: str, **variables: str) -> tuple[list[str], dict[str, str]]:
    """The arguments and variables with which launch.sh starts a program."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    stub = programs / program
    stub.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
    )
    stub.chmod(0o755)
    path = os.pathsep.join((str(programs), os.environ["PATH"]))
    done = subprocess.run(
        [folder / "launch.sh"],
        env={"PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    arguments, environment = json.loads(done.stdout)
    return arguments, environment


def read(module: str, jobs: Sequence[dict[str, Any]], *paths: Path) -> list[dict[str, Any]]:
    """What a module of this folder reads of each job, in a process of its own."""
    python_path = os.pathsep.join(map(str, (*paths, REPOSITORY)))
    done = subprocess.run(
        [sys.executable, "-m", f"tests.frameworks.{module}"],
        input="\n".join(map(json.dumps, jobs)),
        env={**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(jobs)
    return found


def needs_frameworks() -> pytest.MarkDecorator:
    """Skips where the frameworks of `make .venv/frameworks` are not installed."""
    reason = "torchtitan and Megatron need `make .venv/frameworks`"
    return pytest.mark.skipif(not FRAMEWORKS.exists(), reason=reason)


def version_in(folder: Path, package: str) -> str:
    """The version of a package that is installed in that folder."""
    (found,) = importlib.metadata.distributions(name=package, path=[str(folder)])
    return found.version
