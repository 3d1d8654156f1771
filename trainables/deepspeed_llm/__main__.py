"""`python -m trainables.deepspeed_llm`: train one layout without Ray and print the steps as JSON.

Run directly, it starts all ranks of the layout on this machine. Run under torchrun, the process is
one rank. Standard output gets one line of JSON per step, then one summary line. The exit status is
0 for every outcome, because a failed trial is a result; with --fail only for ok.
"""

import contextlib
import json
import os
import sys
from collections.abc import Generator
from typing import Any

import click

from autotune.cluster import Cluster
from autotune.errors import InputError
from autotune.hardware import Device, device_named, unknown_gpu
from autotune.hardware.local_devices import local_gpus
from autotune.inputs import read_json, validated
from autotune.layout import layout_from_mapping, why_illegal
from autotune.models import model_from_mapping
from autotune.options.command_line import AMOUNT, COUNT, SECONDS, command_line
from autotune.options.space_options import device_of_option
from autotune.space import precision_on
from autotune.trial.corpus import check_data
from autotune.trial.deepspeed_config import worker_environment
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from trainables.deepspeed_llm.description import check_model
from trainables.deepspeed_llm.launch import DeepSpeedLlm
from trainables.deepspeed_llm.launched import launched
from trainables.deepspeed_llm.output import step_line, summary_line

_EXIT_FAILED = 1


@click.command()
@click.option("--layout", required=True, metavar="JSON", help="Layout, inline or a path.")
@click.option("--model", required=True, metavar="JSON", help="Model, inline or a path.")
@click.option("--steps", required=True, type=COUNT, help="Steps to train.")
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    help="First steps, excluded from the step time  [default: 1, or 0 for a single step]",
)
@click.option("--memory-gib", type=AMOUNT, help="Memory limit per rank.")
@click.option("--data", metavar="PATH", help="File or folder whose bytes are the tokens.")
@click.option("--synthetic-data", is_flag=True, help="Random tokens instead of text.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", type=click.Choice(["auto", "gpu", "cpu"]), default="auto")
@click.option("--gpu", metavar="NAME", help="Name of the GPU, for its peak FLOP/s (MFU).")
@click.option(
    "--share-gpus",
    is_flag=True,
    help="Let several ranks share a GPU, over gloo: to test a layout, not to time it.",
)
@click.option(
    "--deepspeed-config",
    metavar="FILE",
    help="DeepSpeed configuration, instead of the one made from the layout.",
)
@click.option("--trial-timeout", type=SECONDS, metavar="SECONDS")
@click.option("--fail", is_flag=True, help="Exit with status 1 for any outcome but ok.")
def main(*, deepspeed_config: str | None, fail: bool, **options: Any) -> int:
    """Train one layout for a few steps and print each step as JSON."""
    place = launched()
    spec = _spec(**options, started=None if place is None else place.world_size)
    status_of_failure = _EXIT_FAILED if fail else 0
    if place is not None:
        config = None
        if deepspeed_config is not None:
            config = read_json(deepspeed_config, what="--deepspeed-config")
        _set_environment(spec)
        from trainables.deepspeed_llm.torchrun import train_as_one_rank

        train_as_one_rank(spec, place, config, status_of_failure=status_of_failure)
    if deepspeed_config is not None:
        raise InputError("--deepspeed-config needs torchrun")
    steps: list[StepReport] = []
    outcome = None
    with contextlib.closing(_run_here(spec)) as events:
        for event in events:
            if isinstance(event, StepReport):
                steps.append(event)
                _print(step_line(event))
            else:
                outcome = event.outcome
                _print(summary_line(spec, steps, event))
    return 0 if outcome is Outcome.OK else status_of_failure


def _run_here(spec: TrialSpec) -> Generator[StepReport | Ended, None, None]:
    trainable = DeepSpeedLlm(device_kind=spec.cluster.device.kind)
    make_host = trainable.host_factory
    assert make_host is not None
    host = make_host()
    try:
        yield from trainable.run(spec, [host])
    finally:
        host.close()


def _set_environment(spec: TrialSpec) -> None:
    """Set the worker's variables, without overriding the user's. Call before importing torch."""
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
    share_gpus: bool,
    trial_timeout: float | None,
    started: int | None,
) -> TrialSpec:
    """The trial that the options ask for; `started`: ranks that a launcher started."""
    the_model = model_from_mapping(read_json(model, what="model"))
    check_model(the_model)
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
    world_size = the_layout.world_size
    if started is not None:
        if started != world_size:
            raise InputError(f"layout: needs {world_size} ranks, torchrun started {started}")
    elif hardware.kind == "gpu" and world_size > (gpus := local_gpus()):
        if not share_gpus or not gpus:
            raise InputError(f"layout: needs {world_size} GPUs, this machine has {gpus}")
        if the_layout.pipeline_parallel > 1:
            raise InputError(
                "--share-gpus must be without pipeline stages: gloo cannot send GPU tensors"
            )
    check_data(data, synthetic=synthetic_data, model=the_model)
    cluster = {"gpus_per_node": world_size, "device": hardware, "memory_gib": memory_gib}
    return TrialSpec(
        trial_id="0",
        layout=the_layout,
        model=the_model,
        cluster=validated(Cluster, {"nodes": 1, **cluster}, what="layout"),
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
        named = device_of_option(gpu)
        if kind not in ("auto", named.kind):
            raise InputError(f"--gpu {gpu} and --device {kind} exclude each other")
        return named
    if kind == "auto":
        kind = "gpu" if local_gpus() else "cpu"
    if kind == "cpu":
        return device_named("cpu")
    return unknown_gpu("unknown GPU")


if __name__ == "__main__":
    sys.exit(command_line(main))
