"""`python -m trainables.deepspeed_llm`: train one layout without Ray and print the steps as JSON.

Run directly, it starts all ranks of the layout on this machine. Run under torchrun, the process is
one rank. Standard output gets one line of JSON per step, then one summary line. The exit status is
0 for every outcome, because a failed trial is a result; with --fail only for ok.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Generator
from typing import Any

import click

from autotune.errors import InputError
from autotune.hardware.local_devices import local_gpus
from autotune.options.command_line import COUNT_OR_ZERO, SECONDS, command_line
from autotune.trial.corpus import check_data
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from trainables.deepspeed_llm.launch import DeepSpeedLlm
from trainables.deepspeed_llm.launched import launched
from trainables.deepspeed_llm.network import set_environment
from trainables.deepspeed_llm.options import (
    refuse_other_count,
    specification,
    specification_options,
)
from trainables.deepspeed_llm.output import step_line, summary_line, trace_lines

_EXIT_FAILED = 1


@click.command()
@specification_options
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    help="First steps, excluded from the step time  [default: 1, or 0 for a single step]",
)
@click.option("--data", metavar="PATH", help="File or folder whose bytes are the tokens.")
@click.option(
    "--share-gpus",
    is_flag=True,
    help="Let several ranks share a GPU, over gloo: to test a layout, not to time it.",
)
@click.option(
    "--trace-steps",
    type=COUNT_OR_ZERO,
    default=0,
    show_default=True,
    metavar="N",
    help="Print what each rank did in the last N steps, a line per rank before the summary.",
)
@click.option("--trial-timeout", type=SECONDS, metavar="SECONDS")
@click.option("--fail", is_flag=True, help="Exit with status 1 for any outcome but ok.")
def main(*, warmup: int | None, share_gpus: bool, fail: bool, **options: Any) -> int:
    """Train one layout for a few steps and print each step as JSON."""
    place = launched()
    steps = options["steps"]
    warmup = min(1, steps - 1) if warmup is None else warmup
    if warmup >= steps:
        raise InputError(f"--warmup must be less than --steps, got {warmup} and {steps}")
    spec = specification(**options, warmup=warmup)
    check_data(spec.data, synthetic=spec.synthetic_data, model=spec.model)
    status_of_failure = _EXIT_FAILED if fail else 0
    if place is not None:
        refuse_other_count(spec, place.world_size)
        set_environment(spec, place)
        from trainables.deepspeed_llm.torchrun import Trial, run_as_one_rank

        run_as_one_rank(
            spec, place, functools.partial(Trial, spec), status_of_failure=status_of_failure
        )
    _refuse_too_few_gpus(spec, share_gpus=share_gpus)
    reports: list[StepReport] = []
    outcome = None
    with contextlib.closing(_run_here(spec)) as events:
        for event in events:
            if isinstance(event, StepReport):
                reports.append(event)
                _print(step_line(event))
            else:
                outcome = event.outcome
                for line in trace_lines(event.trace):
                    _print(line)
                _print(summary_line(spec, reports, event))
    return 0 if outcome is Outcome.OK else status_of_failure


def _refuse_too_few_gpus(spec: TrialSpec, *, share_gpus: bool) -> None:
    world_size = spec.layout.world_size
    if spec.cluster.device.kind != "gpu" or world_size <= (gpus := local_gpus()):
        return
    if not share_gpus or not gpus:
        raise InputError(f"layout: needs {world_size} GPUs, this machine has {gpus}")
    if spec.layout.pipeline_parallel > 1:
        raise InputError(
            "--share-gpus must be without pipeline stages: gloo cannot send GPU tensors"
        )


def _run_here(spec: TrialSpec) -> Generator[StepReport | Ended, None, None]:
    trainable = DeepSpeedLlm(device_kind=spec.cluster.device.kind)
    make_host = trainable.host_factory
    assert make_host is not None
    host = make_host()
    try:
        yield from trainable.run(spec, [host])
    finally:
        host.close()


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(command_line(main))
