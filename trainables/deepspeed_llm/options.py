"""The options that a trial and a training have in common, and the specification they make."""

from collections.abc import Callable
from typing import Any

import click

from autotune.cluster import Cluster
from autotune.errors import InputError
from autotune.hardware import Device, device_named, unknown_gpu
from autotune.hardware.local_devices import local_gpus
from autotune.inputs import read_json, validated
from autotune.layout import layout_from_mapping, why_illegal
from autotune.models import model_from_mapping
from autotune.options.command_line import AMOUNT, COUNT
from autotune.options.space_options import device_of_option
from autotune.space import precision_on
from autotune.trial.trial import TrialSpec
from trainables.deepspeed_llm.description import check_model

_OPTIONS = (
    click.option("--layout", required=True, metavar="JSON", help="Layout, inline or a path."),
    click.option("--model", required=True, metavar="JSON", help="Model, inline or a path."),
    click.option("--steps", required=True, type=COUNT, help="Steps to train."),
    click.option("--memory-gib", type=AMOUNT, help="Memory limit per rank."),
    click.option("--synthetic-data", is_flag=True, help="Random tokens."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
    click.option("--device", type=click.Choice(["auto", "gpu", "cpu"]), default="auto"),
    click.option("--gpu", metavar="NAME", help="Name of the GPU, for its peak FLOP/s (MFU)."),
)


def specification_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `specification`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def specification(
    *,
    layout: str,
    model: str,
    steps: int,
    memory_gib: float | None,
    synthetic_data: bool,
    seed: int,
    device: str,
    gpu: str | None,
    warmup: int = 0,
    data: str | None = None,
    trial_timeout: float | None = None,
    trace_steps: int = 0,
) -> TrialSpec:
    """What the options ask for. Raises InputError; the data is not looked at."""
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
    cluster = {"gpus_per_node": the_layout.world_size, "device": hardware, "memory_gib": memory_gib}
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
        trace_steps=trace_steps,
    )


def refuse_other_count(spec: TrialSpec, started: int) -> None:
    """Raise InputError where a launcher started another number of ranks than the layout has."""
    needed = spec.layout.world_size
    if started != needed:
        raise InputError(f"layout: needs {needed} ranks, torchrun started {started}")


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
