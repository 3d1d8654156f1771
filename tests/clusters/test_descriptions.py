"""examples/clusters: files are what Ray and KubeRay take, and their commands are ours."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.autotune.simulate import new_store, run_to_the_end
from tests.conftest import REPOSITORY
from tests.docs.accepted import check
from tests.docs.shell import simple_commands

FOLDER = REPOSITORY / "examples" / "clusters"
RAY_JOB = yaml.safe_load((FOLDER / "kuberay.yaml").read_text("utf-8"))
RAY_JOB_SCHEMA = json.loads(Path(__file__).with_name("rayjob.schema.json").read_text("utf-8"))
RAY_UP = yaml.safe_load((FOLDER / "ray-up.yaml").read_text("utf-8"))


def commands_of_the_head(file: str) -> list[list[str]]:
    """Commands in the comments at the beginning of a file."""
    comments = re.match(r"(?:#.*\n|\n)*", (FOLDER / file).read_text("utf-8"))
    assert comments is not None
    indented = "\n".join(re.findall(r"^#     (.*)$", comments[0], re.MULTILINE))
    return list(simple_commands(indented))


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.iterdir()))
def test_the_commands_of_its_head_are_accepted(file: str) -> None:
    commands = commands_of_the_head(file)
    assert commands
    for words in commands:
        check(words)


def test_the_ray_job_is_one() -> None:
    jsonschema.validate(RAY_JOB, RAY_JOB_SCHEMA)
    cluster = RAY_JOB["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for spec in (group["template"]["spec"] for group in groups):
        mounted = {m["name"] for c in spec["containers"] for m in c["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda job: job.update(apiVersion="ray.io/v1alpha1"),
        lambda job: job["spec"].update(shutdownAfterJobFinished=True),
        lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(
            {"num-gpus": 0}
        ),
    ],
)
def test_a_damaged_ray_job_is_none(damage: Callable[[Any], object]) -> None:
    job = copy.deepcopy(RAY_JOB)
    damage(job)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, RAY_JOB_SCHEMA)


def test_the_command_of_the_ray_job_goes_on_where_it_was(tmp_path: Path) -> None:
    """With a program in the place of autotune that tells its arguments; those are ours."""
    (tmp_path / "autotune").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "autotune").chmod(0o755)
    runs = tmp_path / "runs" / "llm13b"
    entrypoint = RAY_JOB["spec"]["entrypoint"].replace("/runs/llm13b", str(runs))
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def called() -> list[str]:
        made = subprocess.run(["sh", "-c", entrypoint], env=env, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        return ["autotune", *shlex.split(made.stdout)]

    first = called()
    assert first[1:4] == ["run", "--space", "llm13b"] and str(runs) in first
    nodes = RAY_JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]
    assert first[first.index("--nodes") + 1] == str(nodes)
    check(first)
    runs.mkdir(parents=True)
    (runs / "run.json").touch()
    again = called()
    assert again[1:4] == ["run", "--resume", str(runs)]
    check(again)


def test_ray_takes_the_cluster_file() -> None:
    validate_config(prepare_config(copy.deepcopy(RAY_UP)))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**RAY_UP, "start_ray_commands": []}))
    commands = [*RAY_UP["head_start_ray_commands"], *RAY_UP["worker_start_ray_commands"]]
    assert len(commands) == 4
    for command in commands:
        assert "RAY_AUTH_MODE=token" in command or command == "ray stop"
        for words in simple_commands(command):
            check(words)


def test_one_machine_begins_and_goes_on(tmp_path: Path) -> None:
    """With a program in the place of nvidia-smi, on which nothing else depends in a dry run."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf 'GPU 0\\nGPU 1\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    run = tmp_path / "run"
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "OUT": str(run)}

    def said(*arguments: str) -> str:
        done = subprocess.run(
            [FOLDER / "one-machine.sh", *arguments],
            cwd=REPOSITORY,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    first = said("--model", "examples/model.json", "--gpu", "h100", "--dry-run")
    assert "1 node of 2 h100" in first, first
    run_to_the_end(new_store(run, max_trials=2, trainable="simulated"))
    assert "best: " in said("--model", "examples/model.json")
