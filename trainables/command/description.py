"""What the tuner knows of this trainable."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from autotune.cost.trainers import known_trainers
from autotune.errors import InputError
from autotune.inputs import listed, shown
from autotune.trial.trainable import Trainable, TrainableDescription, TrainableSetup
from trainables.command.reading import how_figures_were_read
from trainables.command.recipe import recipe_of
from trainables.command.recipe_file import read_recipe
from trainables.command.template import command_template


def _configured(values: Mapping[str, Any]) -> TrainableDescription:
    recipe = recipe_of(values)
    if recipe.trainer not in known_trainers():
        known = listed(sorted(known_trainers()))
        raise InputError(f"command: trainer must be one of {known}, got {shown(recipe.trainer)}")
    return dataclasses.replace(
        DESCRIPTION,
        dimensions=recipe.varied,
        values=recipe.dimensions,
        trainer=recipe.trainer,
        comparable_losses=recipe.comparable_losses,
        warmup_steps=recipe.warmup_steps,
        measured_steps=recipe.measured_steps,
        trial_timeout_seconds=recipe.trial_timeout_seconds,
    )


def _make(setup: TrainableSetup) -> Trainable:
    from trainables.command.launch import Command

    assert setup.command is not None
    return Command(
        setup.command,
        recipe_of(setup.command),
        device_kind=setup.space.cluster.device.kind,
        env=setup.env,
    )


DESCRIPTION = TrainableDescription(
    name="command",
    trains="real",
    trainer="deepspeed_llm",
    make=_make,
    read_command=read_recipe,
    command_template=command_template,
    how_read=how_figures_were_read,
    configured=_configured,
    comparable_losses=False,
    limits_memory=False,
    reduced_trials=False,
    export_format="command",
)
