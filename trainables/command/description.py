"""What the tuner knows of this trainable."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from autotune.cost.trainers import known_trainers
from autotune.errors import InputError
from autotune.inputs import listed, shown
from autotune.layout import Layout
from autotune.trial.trainable import CommandLine, Trainable, TrainableDescription, TrainableSetup
from autotune.trial.trial import spec_of
from trainables.command.placeholders import placeholder_values
from trainables.command.reading import how_figures_were_read
from trainables.command.recipe import checked_trainer, recipe_of
from trainables.command.recipe_file import read_recipe
from trainables.command.template import command_template


def _configured(values: Mapping[str, Any]) -> TrainableDescription:
    recipe = recipe_of(values)
    # A stored request has the content of a file, so no file is read for it.
    if isinstance(recipe.trainer, str) and recipe.trainer not in known_trainers():
        known = listed(sorted(known_trainers()))
        raise InputError(f"command: trainer must be one of {known}, got {shown(recipe.trainer)}")
    checked_trainer(recipe.trainer)
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


def _command_line(
    setup: TrainableSetup, layout: Layout, at_start: Mapping[str, str]
) -> CommandLine:
    assert setup.command is not None
    recipe = recipe_of(setup.command)
    spec = spec_of(setup.space, layout, trial_id="export", log_dir=None)
    values = {**placeholder_values(spec, {}), **at_start}
    return CommandLine(
        argv=recipe.arguments(values),
        env={**setup.env, **recipe.environment(values)},
        files=recipe.texts(values),
        directory=recipe.directory,
        per_rank=recipe.processes == "rank",
    )


DESCRIPTION = TrainableDescription(
    name="command",
    trains="real",
    trainer="deepspeed_llm",
    make=_make,
    read_command=read_recipe,
    command_template=command_template,
    how_read=how_figures_were_read,
    command_line=_command_line,
    configured=_configured,
    comparable_losses=False,
    limits_memory=False,
    export_format="command",
)
