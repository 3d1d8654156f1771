"""`python -m trainables.deepspeed_llm`: train one layout without Ray, and print what happened.

Alone it starts the layout's ranks on this machine; under torchrun it is one of them. Each step is a
line of JSON on the standard output, the last line is the summary.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from autotune.cli import command_line
from autotune.cluster import Cluster
from autotune.deepspeed_config import worker_environment
from autotune.errors import InputError
from autotune.hardware import Device, device_named
from autotune.layout import layout_from_mapping
from autotune.measurement import measure
from autotune.model import model_from_mapping, read_json
from autotune.rules import why_illegal
from autotune.space import precision_on
from autotune.trial import Ended, StepReport, TrialSpec
from trainables.deepspeed_llm.launch import DeepSpeedLlm

_DRIVER = Path("/proc/driver/nvidia/version")


@click.command()
@click.option("--layout", required=True, metavar="JSON", help="Layout, inline or a path.")
@click.option("--model", required=True, metavar="JSON", help="Model, inline or a path.")
@click.option("--steps", required=True, type=click.IntRange(min=1), help="Steps to train.")
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    help="First steps that are left out of the timing  [default: 1, or 0 for a single step]",
)
@click.option("--memory-gib", type=click.FloatRange(min=0, min_open=True), help="Limit per rank.")
@click.option("--data", metavar="PATH", help="File or folder whose bytes are the tokens.")
@click.option("--synthetic-data", is_flag=True, help="Random tokens instead of text.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", type=click.Choice(["auto", "gpu", "cpu"]), default="auto")
@click.option("--gpu", metavar="NAME", help="Name of the GPU, for its peak (MFU).")
@click.option("--deepspeed-config", metavar="FILE", help="Use this instead of the layout's own.")
@click.option("--trial-timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS")
def main(**options: Any) -> int:
    """Train one layout for a few steps and print each step as JSON."""
    spec = _spec(**options)
    config = options["deepspeed_config"]
    if config is not None and "RANK" not in os.environ:
        raise InputError("--deepspeed-config needs torchrun")
    if "RANK" in os.environ:
        _set_environment(spec)
        from trainables.deepspeed_llm.torchrun import train_as_one_rank

        overrides = read_json(config, what="--deepspeed-config") if config else None
        train_as_one_rank(spec, overrides)
        return 0
    steps: list[StepReport] = []
    for event in _run_here(spec):
        if isinstance(event, StepReport):
            steps.append(event)
            _print(step_line(event))
        else:
            _print(summary_line(spec, steps, event))
    return 0


def step_line(step: StepReport) -> dict[str, Any]:
    """A step as it is printed."""
    return {
        "step": step.step,
        "loss": step.loss,
        "grad_norm": step.grad_norm,
        "step_seconds": step.step_seconds,
    }


def summary_line(spec: TrialSpec, steps: list[StepReport], ended: Ended) -> dict[str, Any]:
    """The last line: how it ended, and the figures."""
    measured = dataclasses.asdict(measure(spec, steps))
    return {
        "summary": True,
        "outcome": ended.outcome,
        "reason": ended.reason,
        "losses": [step.loss for step in steps],
        **{name: measured[name] for name in ("step_seconds", "peak_memory_gib", "mfu")},
        "startup_seconds": ended.startup_seconds,
    }


def _run_here(spec: TrialSpec) -> Iterator[StepReport | Ended]:
    trainable = DeepSpeedLlm(device_kind=spec.cluster.device.kind)
    make_host = trainable.host_factory
    assert make_host is not None
    host = make_host()
    try:
        yield from trainable.run(spec, [host])
    finally:
        host.close()


def _set_environment(spec: TrialSpec) -> None:
    """Before torch and DeepSpeed are imported; what the user set stays."""
    for name, value in worker_environment(spec.cluster.device.kind).items():
        os.environ.setdefault(name, value)


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _spec(
    *,
    layout: str,
    model: str,
    steps: int,
    warmup: int | None,
    memory_gib: float | None,
    data: str | None,
    synthetic_data: bool,
    seed: int,
    device: str,
    gpu: str | None,
    trial_timeout: float | None,
    deepspeed_config: str | None,
) -> TrialSpec:
    the_model = model_from_mapping(read_json(model, what="model"))
    the_layout = layout_from_mapping(read_json(layout, what="layout"), the_model)
    hardware = _device(device, gpu)
    precision = the_model.precision or precision_on(hardware.kind)
    if reason := why_illegal(the_layout, the_model, precision):
        raise InputError(f"layout: {reason}")
    if the_layout.attention_kernel not in hardware.attention_kernels:
        kernels = ", ".join(hardware.attention_kernels)
        raise InputError(
            f"layout: attention_kernel must be one of {kernels} on {hardware.name}, "
            f"got {the_layout.attention_kernel}"
        )
    warmup = min(1, steps - 1) if warmup is None else warmup
    if warmup >= steps:
        raise InputError(f"--warmup must be less than --steps, got {warmup} and {steps}")
    world_size = int(os.environ.get("WORLD_SIZE", the_layout.world_size))
    if world_size != the_layout.world_size:
        raise InputError(
            f"layout: needs {the_layout.world_size} ranks, torchrun started {world_size}"
        )
    if data is not None and not Path(data).exists():
        raise InputError(f"--data: no such file or folder: {data!r}")
    return TrialSpec(
        trial_id="0",
        layout=the_layout,
        model=the_model,
        cluster=Cluster(nodes=1, gpus_per_node=world_size, device=hardware, memory_gib=memory_gib),
        precision=precision,
        warmup_steps=warmup,
        measured_steps=steps - warmup,
        log_dir=None,
        data=data,
        synthetic_data=synthetic_data,
        seed=seed,
        trial_timeout_seconds=trial_timeout,
    )


def _device(kind: str, gpu: str | None) -> Device:
    if gpu is not None:
        return device_named(gpu)
    if kind == "auto":
        kind = "gpu" if _DRIVER.exists() else "cpu"
    if kind == "cpu":
        return device_named("cpu")
    return Device(
        name="unknown GPU",
        kind="gpu",
        memory_gib=None,
        peak_bf16_tflops=None,
        attention_kernels=("math", "sdpa_flash", "sdpa_cudnn", "flash_attn"),
        source="not named",
    )


if __name__ == "__main__":
    sys.exit(command_line(main))
