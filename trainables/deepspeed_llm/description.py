"""What the tuner knows of this trainable before it imports torch."""

from collections.abc import Mapping
from typing import Literal

from autotune.errors import InputError
from autotune.model import Model
from autotune.trial.trainable import Prober, Trainable, TrainableDescription, TrainableSetup


def check_model(model: Model) -> None:
    """Raise InputError for a model that the worker does not train (the cost model plans it)."""
    for name, required in (("tie_word_embeddings", False), ("gated_feed_forward", True)):
        if getattr(model, name) != required:
            raise InputError(
                f"the DeepSpeed worker trains Llama models only: {name} must be {required}, "
                f"got {not required}"
            )


def _make(setup: TrainableSetup) -> Trainable:
    from trainables.deepspeed_llm.launch import DeepSpeedLlm

    return DeepSpeedLlm(device_kind=setup.space.cluster.device.kind, env=setup.env)


def _make_prober(device_kind: Literal["gpu", "cpu"], env: Mapping[str, str]) -> Prober:
    from trainables.probe.launch import DeepSpeedProber

    return DeepSpeedProber(device_kind=device_kind, env=env)


DESCRIPTION = TrainableDescription(
    name="deepspeed",
    trains="real",
    trainer="deepspeed_llm",
    make=_make,
    check_model=check_model,
    make_prober=_make_prober,
)
