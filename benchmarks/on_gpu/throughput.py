"""Section 1: throughput of the worker, measured as in a trial."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.cluster import Cluster
from autotune.errors import NodeLost
from autotune.hardware import Device
from autotune.layout import Layout
from autotune.model import Model
from autotune.space import precision_on
from autotune.trial.measurement import Measurement, measure
from autotune.trial.trial import Ended, StepReport, TrialSpec, to_json
from benchmarks.on_gpu.children import ChildFailed
from benchmarks.on_gpu.rows import Row
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.launch import DeepSpeedLlm

WARMUP_STEPS = 2
_MEASURED_STEPS = 3
_ROW_SECONDS = 60.0
_COMPILED_ROW_SECONDS = 180.0
_FIRST_ROW_SECONDS = 300.0

_SMALLEST_STEP = Row(
    name="smallest step",
    group="overheads",
    model=Model(
        num_hidden_layers=1,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=256,
        sequence_length=64,
        global_batch_size=1,
    ),
    layout=Layout(),
)


class Worker:
    """Trains rows in host processes: one per set of environment variables, reused between rows."""

    def __init__(self, device: Device, memory_gib: float | None, logs: Path) -> None:
        self._device, self._logs = device, logs
        self._cluster = Cluster(nodes=1, gpus_per_node=1, device=device, memory_gib=memory_gib)
        self._hosts: dict[tuple[tuple[str, str], ...], LocalHost] = {}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts.values():
            host.close()

    def train(self, row: Row, seconds: float = math.inf) -> dict[str, Any]:
        """Train a row with that time limit and return its result, whatever the outcome.

        A new host process trains a very small row first, as warm-up: it imports modules, loads
        libraries and the first kernels.
        """
        environment = tuple(sorted(row.environment.items()))
        trainable = DeepSpeedLlm(device_kind=self._device.kind, env=dict(environment))
        if environment not in self._hosts:
            self._hosts[environment] = LocalHost(
                device_kind=self._device.kind, env=dict(environment)
            )
            warm_up = self.train(dataclasses.replace(_SMALLEST_STEP, environment=row.environment))
            if warm_up["outcome"] != "ok":
                return {**self.leave_out(row, warm_up["reason"]), "outcome": "crashed"}
        log_dir = self._logs / row.name.replace("/", "-").replace(" ", "_")
        log_dir.mkdir(parents=True, exist_ok=True)
        spec = TrialSpec(
            trial_id=row.name,
            layout=row.layout,
            model=row.model,
            cluster=self._cluster,
            precision=precision_on(self._device.kind),
            warmup_steps=WARMUP_STEPS,
            measured_steps=_MEASURED_STEPS,
            log_dir=str(log_dir),
            synthetic_data=True,
            trial_timeout_seconds=min(seconds, _longest_seconds(row)),
        )
        began = time.monotonic()
        try:
            *steps, ended = trainable.run(spec, [self._hosts[environment]])
        except NodeLost as error:
            self._hosts.pop(environment).close()
            return {**self.leave_out(row, str(error)), "outcome": "crashed"}
        assert isinstance(ended, Ended)
        reports = [step for step in steps if isinstance(step, StepReport)]
        return {
            "group": row.group,
            "model": to_json(row.model),
            "layout": to_json(row.layout),
            "environment": dict(environment),
            "outcome": str(ended.outcome),
            "reason": ended.reason,
            "startup_seconds": ended.startup_seconds,
            "wall_seconds": time.monotonic() - began,
            "all_step_seconds": [step.step_seconds for step in reports],
            "peak_reserved_gib": _most_reserved(reports),
            **to_json(measure(spec, reports)),  # type: ignore[dict-item]
        }

    def leave_out(self, row: Row, reason: str) -> dict[str, Any]:
        """The result of a row that cannot run here: null figures and the reason."""
        figures = dict.fromkeys(field.name for field in dataclasses.fields(Measurement))
        return {
            "group": row.group,
            "model": to_json(row.model),
            "layout": to_json(row.layout),
            "environment": dict(row.environment),
            "outcome": "not measured",
            "reason": reason,
            **figures,
        }

    def overheads(self, facts: Mapping[str, Any]) -> dict[str, float | None]:
        """Fixed costs: time of the smallest step, and memory outside the tensors (CUDA context)."""
        row = self.train(_SMALLEST_STEP)
        if row["outcome"] != "ok":
            raise ChildFailed(f"the smallest row: {row['outcome']}: {row['reason']}")
        total, nominal = facts["total_memory_gib"], self._device.memory_gib
        return {
            "step_seconds": row["step_seconds"],
            "context_gib": row["peak_memory_gib"] if self._device.kind == "gpu" else None,
            "usable_memory": total / nominal if total and nominal else None,
        }


def _longest_seconds(row: Row) -> float:
    if row.group == "overheads":
        return _FIRST_ROW_SECONDS
    return _COMPILED_ROW_SECONDS if row.layout.torch_compile else _ROW_SECONDS


def _most_reserved(steps: Sequence[StepReport]) -> float | None:
    reserved = [rank.peak_reserved_gib for step in steps for rank in step.ranks]
    return max((gib for gib in reserved if gib is not None), default=None)
