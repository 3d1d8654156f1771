"""Starts the tracing of ranks in a process of its own; imports neither torch nor DeepSpeed."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from autotune.errors import TracingFailed
from autotune.trial.deepspeed_config import worker_environment
from autotune.trial.traced import TracedRank, traced_from_json
from autotune.trial.trial import TrialSpec, to_json
from trainables.deepspeed_llm.host import with_project_root


def trace_ranks(spec: TrialSpec, stages: Sequence[int]) -> list[TracedRank]:
    """Trace the first rank of each stage (from 0). Raises TracingFailed."""
    return traced([(spec, stage) for stage in stages])


def traced(jobs: Sequence[tuple[TrialSpec, int]]) -> list[TracedRank]:
    """Trace a rank for each trial and stage. Raises TracingFailed."""
    asked = [{"spec": to_json(spec), "stage": stage} for spec, stage in jobs]
    environment = {**worker_environment("cpu"), **os.environ, "DS_ACCELERATOR": "cpu"}
    environment["PYTHONPATH"] = with_project_root(environment.get("PYTHONPATH"))
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [sys.executable, "-m", "trainables.deepspeed_llm.traced", str(answer.fileno())],
            input=json.dumps(asked).encode(),
            stdout=output,
            stderr=output,
            pass_fds=[answer.fileno()],
            env=environment,
        )
        if done.returncode != 0:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1].removeprefix("RuntimeError: ") if lines else ""
            raise TracingFailed(reason or f"exit status {done.returncode}")
        answer.seek(0)
        return traced_from_json(json.load(answer))
