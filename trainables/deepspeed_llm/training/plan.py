"""What a training does beside its layout, checked before anything is started. Free of torch."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.errors import InputError, in_field
from autotune.inputs import shown
from autotune.output_paths import refuse_impossible_directory, refuse_impossible_file
from autotune.trial.deepspeed_config import deepspeed_config
from autotune.trial.trial import TrialSpec
from trainables.deepspeed_llm.tokens import InOrder, Samples, SyntheticTokens
from trainables.deepspeed_llm.training import checkpoints
from trainables.deepspeed_llm.training.samples import InVocabulary, Shuffled
from trainables.deepspeed_llm.training.schedule import Schedule
from trainables.deepspeed_llm.training.token_files import format_of, open_tokens


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The options of a training."""

    schedule: Schedule
    weight_decay: float
    """Weight decay of matrices; vectors have none."""
    config: Mapping[str, Any] | None = None
    """DeepSpeed's configuration; None: made from the layout."""
    data_dtype: str | None = None
    """Type of the token ids in .bin files."""
    checkpoints: Path | None = None
    """Folder that checkpoints are written to; None: none are."""
    save_every: int | None = None
    """Steps between checkpoints; None: only after the last step."""
    keep_checkpoints: int | None = None
    """How many of the newest checkpoints are kept; None: all."""
    resume_from: Path | None = None
    """Folder of checkpoints whose latest the training goes on from."""
    validation_data: str | None = None
    """Tokens of the validation loss, in any format of the training data; None: no validation."""
    validate_every: int | None = None
    """Steps between validations; None: only after the last step."""
    validation_batches: int = 1
    """Global batches of a validation: always the first ones of the data."""
    metrics: Path | None = None
    """File of JSON lines that the figures of each step are written to."""

    def __post_init__(self) -> None:
        if self.schedule.minimum > self.schedule.peak:
            raise InputError(
                f"must be at most `learning_rate` {self.schedule.peak:g}, got "
                f"{self.schedule.minimum:g}",
                field="min_learning_rate",
            )
        if self.schedule.warmup_steps > self.schedule.steps:
            raise InputError(
                f"must be at most `steps` {self.schedule.steps}, got {self.schedule.warmup_steps}",
                field="warmup_steps",
            )
        for field in ("save_every", "keep_checkpoints"):
            if getattr(self, field) is not None and self.checkpoints is None:
                raise InputError("must be given with `checkpoints`", field=field)
        if self.validate_every is not None and self.validation_data is None:
            raise InputError("must be given with `validation_data`", field="validate_every")

    def is_due(self, every: int | None, done: int) -> bool:
        """Whether something is to be done after so many steps: every so often, and at the end."""
        return done == self.schedule.steps or (every is not None and done % every == 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a training reads."""

    samples: Samples
    validation: Samples | None
    first_step: int
    """Steps that are done already: those of the checkpoint."""


def opened(plan: Plan, spec: TrialSpec) -> Inputs:
    """Open the data and look at the checkpoint. Raises InputError; nothing is written."""
    _refuse_other_config(plan, spec)
    first_step = _steps_done(plan, spec)
    _refuse_overwriting(plan)
    return Inputs(
        samples=_training_samples(plan, spec),
        validation=_validation_samples(plan, spec),
        first_step=first_step,
    )


def _refuse_other_config(plan: Plan, spec: TrialSpec) -> None:
    """The worker takes these from the layout: another value would be half applied."""
    if plan.config is None:
        return
    made = deepspeed_config(
        spec.layout, spec.model, precision=spec.precision, overlap_communication=False
    )
    for section, key in (
        (None, "train_micro_batch_size_per_gpu"),
        (None, "gradient_accumulation_steps"),
        ("zero_optimization", "stage"),
        ("bf16", "enabled"),
    ):
        own = made if section is None else made[section]
        given = plan.config if section is None else plan.config.get(section)
        value = given.get(key) if isinstance(given, Mapping) else None
        if value != own[key]:
            name = key if section is None else f"{section}.{key}"
            raise InputError(
                f"must have the layout's {name} {shown(own[key])}, got {shown(value)}",
                field="deepspeed_config",
            )


def _training_samples(plan: Plan, spec: TrialSpec) -> Samples:
    model = spec.model
    if spec.synthetic_data:
        return InOrder(SyntheticTokens(model.vocab_size, spec.seed), model.sequence_length)
    with in_field("data"):
        tokens = open_tokens(spec.data, plan.data_dtype, vocab_size=model.vocab_size)
    if format_of(spec.data).is_text:
        return InOrder(tokens, model.sequence_length)
    return InVocabulary(
        Shuffled(tokens, model.sequence_length, spec.seed), model.vocab_size, "data"
    )


def _validation_samples(plan: Plan, spec: TrialSpec) -> Samples | None:
    if plan.validation_data is None:
        return None
    model = spec.model
    with in_field("validation_data"):
        # The type of .bin files is that of the training data.
        dtype = plan.data_dtype if format_of(plan.validation_data).needs_dtype else None
        tokens = open_tokens(plan.validation_data, dtype, vocab_size=model.vocab_size)
        needed = plan.validation_batches * model.tokens_per_step + 1
        if len(tokens) < needed:
            raise InputError(
                f"must have {needed} tokens for {plan.validation_batches} batches of "
                f"`validation_batches`, got {len(tokens)}"
            )
    samples = InOrder(tokens, model.sequence_length)
    return InVocabulary(samples, model.vocab_size, "validation_data")


def _steps_done(plan: Plan, spec: TrialSpec) -> int:
    directory = plan.resume_from
    if directory is None:
        return 0
    with in_field("resume_from"):
        step = checkpoints.latest(directory)
        if step is None:
            raise InputError(f"no checkpoint in {shown(directory)}")
        checkpoints.refuse_other(directory, step, spec)
    if step > plan.schedule.steps:
        raise InputError(
            f"must be at least the {step} of the checkpoint, got {plan.schedule.steps}",
            field="steps",
        )
    return step


def _refuse_overwriting(plan: Plan) -> None:
    """Nothing of another training is overwritten, and files can be made where they are to be."""
    resumed = plan.resume_from
    if (directory := plan.checkpoints) is not None:
        with in_field("checkpoints"):
            same = resumed is not None and os.path.realpath(resumed) == os.path.realpath(directory)
            if not same and checkpoints.latest(directory) is not None:
                raise InputError(
                    f"must be a new folder, or that of `resume_from`, got one with checkpoints: "
                    f"{shown(directory)}"
                )
            refuse_impossible_directory(directory)
    if (metrics := plan.metrics) is not None:
        with in_field("metrics"):
            refuse_impossible_file(metrics)
            if resumed is None and metrics.exists():
                raise InputError(f"must be a new file without `resume_from`, got {shown(metrics)}")
