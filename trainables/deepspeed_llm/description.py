"""What the tuner knows of this trainable before it imports torch."""

from collections.abc import Mapping, Sequence
from typing import Literal

from autotune.errors import InputError
from autotune.model import Model
from autotune.trial.traced import TracedRank
from autotune.trial.trainable import Prober, Trainable, TrainableDescription, TrainableSetup
from autotune.trial.trial import TrialSpec


def check_model(model: Model) -> None:
    """Raise InputError for a model that the worker does not train (the cost model plans it)."""
    latent, experts = model.latent_attention is not None, model.experts is not None
    shared_gate = model.experts is not None and model.experts.shared_gate
    not_trained = {
        "parallel_residual with norm_placement after or around": (
            model.parallel_residual and model.norm_placement != "before"
        ),
        "qkv_bias with latent_attention": latent and model.qkv_bias,
        "qk_norm with latent_attention": latent and model.qk_norm != "none",
        "experts with mlp_bias": experts and model.mlp_bias,
        "experts without gated_feed_forward": experts and not model.gated_feed_forward,
        "experts with a shared_gate": shared_gate,
    }
    for what, asked in not_trained.items():
        if asked:
            raise InputError(f"the DeepSpeed worker does not train {what}")


def _make(setup: TrainableSetup) -> Trainable:
    from trainables.deepspeed_llm.launch import DeepSpeedLlm

    return DeepSpeedLlm(device_kind=setup.space.cluster.device.kind, env=setup.env)


def _make_prober(device_kind: Literal["gpu", "cpu"], env: Mapping[str, str]) -> Prober:
    from trainables.probe.launch import DeepSpeedProber

    return DeepSpeedProber(device_kind=device_kind, env=env)


def _trace_ranks(spec: TrialSpec, stages: Sequence[int]) -> list[TracedRank]:
    from trainables.deepspeed_llm.traced.launch import trace_ranks

    return trace_ranks(spec, stages)


DESCRIPTION = TrainableDescription(
    name="deepspeed",
    trains="real",
    trainer="deepspeed_llm",
    make=_make,
    check_model=check_model,
    make_prober=_make_prober,
    trace_ranks=_trace_ranks,
    records_passes=True,
    reduced_trials=True,
)
