"""The host process survives whatever its ranks do while they are being stopped."""

import json
from pathlib import Path

import pytest

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.layout import layout_from_mapping
from autotune.model import Model
from autotune.trial.trial import Outcome, TrialSpec
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.launch import DeepSpeedLlm


@pytest.mark.parametrize("times", [5, pytest.param(15, marks=pytest.mark.slow)])
def test_ranks_that_print_while_they_are_stopped(
    small_model: Model, tmp_path: Path, times: int
) -> None:
    """Their output and the command to stop them arrive together."""
    env = {
        "FAULTS": json.dumps({"0001": "never stops printing"}),
        "FAULT_TIME": str(tmp_path / "fault"),
    }
    worker = DeepSpeedLlm(device_kind="cpu")
    with LocalHost(device_kind="cpu", env=env, program="tests.faults.faulty_host") as host:
        for _ in range(times):
            events = worker.run(spec(small_model, "0001", timeout_seconds=0.7), [host])
            *_, ended = events
            assert ended.outcome is Outcome.TIMEOUT, ended
        *_, ended = worker.run(spec(small_model, "0002"), [host])
        assert ended.outcome is Outcome.OK, ended


def spec(model: Model, trial_id: str, timeout_seconds: float = 60) -> TrialSpec:
    return TrialSpec(
        trial_id=trial_id,
        layout=layout_from_mapping({"data_parallel": 2}, model),
        model=model,
        cluster=Cluster(nodes=1, gpus_per_node=2, device=device_named("cpu")),
        precision="fp32",
        warmup_steps=1,
        measured_steps=3,
        log_dir=None if trial_id == "0002" else "/dev/null",
        trial_timeout_seconds=timeout_seconds,
    )
