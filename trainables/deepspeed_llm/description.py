"""What the tuner knows of this trainable before it imports torch."""

from autotune.trial.trainable import Trainable, TrainableDescription, TrainableSetup


def _make(setup: TrainableSetup) -> Trainable:
    from trainables.deepspeed_llm.launch import DeepSpeedLlm

    return DeepSpeedLlm(device_kind=setup.space.cluster.device.kind, env=setup.env)


DESCRIPTION = TrainableDescription(
    name="deepspeed", trains="real", trainer="deepspeed_llm", make=_make
)
