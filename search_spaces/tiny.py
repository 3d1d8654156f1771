"""A Llama that trains in seconds on two CPU cores, as 2 virtual nodes of 2 devices."""

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.model import Model
from autotune.space import SearchSpace


def space() -> SearchSpace:
    """About 5 million parameters; with this memory limit some layouts run out of memory."""
    return SearchSpace(
        name="tiny",
        model=Model(
            num_hidden_layers=4,
            hidden_size=256,
            intermediate_size=688,
            num_attention_heads=8,
            num_key_value_heads=4,
            vocab_size=4096,
            sequence_length=80,
            global_batch_size=8,
        ),
        cluster=Cluster(nodes=2, gpus_per_node=2, device=device_named("cpu"), memory_gib=0.125),
        tensor_parallel=(1, 2, 4),
        pipeline_parallel=(1, 2, 4),
        zero_stage=(0, 1, 2, 3),
        micro_batch_size=(1, 2, 4, 8),
        max_trials=38,
        warmup_steps=1,
        measured_steps=5,
    )
