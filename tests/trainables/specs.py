"""Trials of one layout, for tests."""

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.layout import Layout
from autotune.model import Model, Precision
from autotune.trial.trial import TrialSpec


def spec_on(
    device: str, layout: Layout, model: Model, precision: Precision, *, nodes: int = 1
) -> TrialSpec:
    """A trial of two steps on random tokens, on so many nodes of that device."""
    cluster = Cluster(
        nodes=nodes, gpus_per_node=layout.world_size // nodes, device=device_named(device)
    )
    return TrialSpec(
        trial_id="1",
        layout=layout,
        model=model,
        cluster=cluster,
        precision=precision,
        warmup_steps=1,
        measured_steps=1,
        log_dir=None,
        synthetic_data=True,
    )
