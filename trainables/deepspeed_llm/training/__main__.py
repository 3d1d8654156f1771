"""`python -m trainables.deepspeed_llm.training`: train a layout, as one rank under torchrun.

Standard output gets one line of JSON per step, then one summary line. The exit status is 0 where
all steps were made, 1 where a rank ran out of memory or failed, 2 for bad input.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import click

from autotune.errors import InputError
from autotune.inputs import read_json
from autotune.options.command_line import (
    AMOUNT,
    COUNT,
    EXIT_BAD_INPUT,
    PATH,
    SHARE,
    command_line,
)
from autotune.trial.corpus import check_data
from autotune.trial.trial import TrialSpec
from trainables.deepspeed_llm.hyperparameters import LEARNING_RATE, WEIGHT_DECAY
from trainables.deepspeed_llm.launched import launched
from trainables.deepspeed_llm.network import set_environment
from trainables.deepspeed_llm.options import (
    refuse_other_count,
    specification,
    specification_options,
)
from trainables.deepspeed_llm.training.plan import Inputs, Plan, opened
from trainables.deepspeed_llm.training.schedule import Schedule
from trainables.deepspeed_llm.training.token_files import DTYPES, format_of

_EXIT_FAILED = 1
# Of the steps, where --warmup-steps is not given.
_WARMUP_SHARE = 0.01
# Of the peak, where --min-learning-rate is not given (Llama 2, arXiv 2307.09288, section 2.2).
_MINIMUM_SHARE = 0.1


@click.command()
@specification_options
@click.option(
    "--data",
    metavar="PATH",
    help="Tokens: .bin, .npy, or a folder of Hugging Face's save_to_disk with input_ids; text of "
    "any other name, whose bytes are the tokens.",
)
@click.option("--data-dtype", type=click.Choice(DTYPES), help="Type of the ids in .bin files.")
@click.option("--learning-rate", type=AMOUNT, default=LEARNING_RATE, show_default=True)
@click.option(
    "--min-learning-rate",
    type=SHARE,
    help="Learning rate of the last step  [default: a tenth of --learning-rate]",
)
@click.option(
    "--warmup-steps",
    type=click.IntRange(min=0),
    help="Steps that the learning rate rises over  [default: a hundredth of --steps]",
)
@click.option(
    "--weight-decay",
    type=SHARE,
    default=WEIGHT_DECAY,
    show_default=True,
    help="Of matrices and embeddings; norms and biases have none.",
)
@click.option("--checkpoints", type=PATH, metavar="DIR", help="Save checkpoints into DIR.")
@click.option("--save-every", type=COUNT, metavar="STEPS", help="[default: after the last step]")
@click.option("--keep-checkpoints", type=COUNT, metavar="N", help="Delete all but the newest N.")
@click.option("--resume-from", type=PATH, metavar="DIR", help="Go on from the latest of DIR.")
@click.option("--validation-data", metavar="PATH", help="In any format of --data.")
@click.option("--validate-every", type=COUNT, metavar="STEPS", help="[default: after the last]")
@click.option("--validation-batches", type=COUNT, default=1, show_default=True)
@click.option("--metrics", type=PATH, metavar="FILE", help="Write the steps' lines into a file.")
@click.option(
    "--deepspeed-config",
    metavar="FILE",
    help="DeepSpeed configuration, instead of the one made from the layout.",
)
@click.option("--dry-run", is_flag=True, help="Only check the options, in one process.")
def main(*, dry_run: bool, **options: Any) -> int:
    """Train a layout from its first step, or a checkpoint, to the last."""
    place = launched()
    try:
        spec, plan, inputs = _checked(**options)
        if place is not None:
            refuse_other_count(spec, place.world_size)
    except InputError:
        if place is not None and place.local_rank > 0:
            return EXIT_BAD_INPUT  # the machine's first rank says the same
        raise
    if dry_run:
        return 0
    if place is None:
        raise InputError("must be started by torchrun, as an exported launch.sh does")
    set_environment(spec, place)
    from trainables.deepspeed_llm.torchrun import run_as_one_rank
    from trainables.deepspeed_llm.training.loop import Training

    run_as_one_rank(
        spec,
        place,
        functools.partial(Training, spec, plan, inputs),
        status_of_failure=_EXIT_FAILED,
    )


def _checked(
    *,
    learning_rate: float,
    min_learning_rate: float | None,
    warmup_steps: int | None,
    weight_decay: float,
    data_dtype: str | None,
    checkpoints: Path | None,
    save_every: int | None,
    keep_checkpoints: int | None,
    resume_from: Path | None,
    validation_data: str | None,
    validate_every: int | None,
    validation_batches: int,
    metrics: Path | None,
    deepspeed_config: str | None,
    data: str | None,
    synthetic_data: bool,
    **layout: Any,
) -> tuple[TrialSpec, Plan, Inputs]:
    # A launch.sh of a search on random tokens says --synthetic-data; real data replaces them.
    spec = specification(**layout, data=data, synthetic_data=synthetic_data and data is None)
    steps = spec.steps
    config = None
    if deepspeed_config is not None:
        config = read_json(deepspeed_config, what="--deepspeed-config")
    minimum = learning_rate * _MINIMUM_SHARE if min_learning_rate is None else min_learning_rate
    plan = Plan(
        schedule=Schedule(
            peak=learning_rate,
            minimum=minimum,
            warmup_steps=int(steps * _WARMUP_SHARE) if warmup_steps is None else warmup_steps,
            steps=steps,
        ),
        weight_decay=weight_decay,
        config=config,
        data_dtype=data_dtype,
        checkpoints=checkpoints,
        save_every=save_every,
        keep_checkpoints=keep_checkpoints,
        resume_from=resume_from,
        validation_data=validation_data,
        validate_every=validate_every,
        validation_batches=validation_batches,
        metrics=metrics,
    )
    if spec.synthetic_data or format_of(spec.data).is_text:
        check_data(spec.data, synthetic=spec.synthetic_data, model=spec.model)
    return spec, plan, opened(plan, spec)


if __name__ == "__main__":
    sys.exit(command_line(main))
