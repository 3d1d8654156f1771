"""Llama 405B at 8k tokens on 64 nodes of 8 H100: shape of Dubey et al. 2024 (arXiv 2407.21783)."""

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.model import Model
from autotune.space import SearchSpace


def space() -> SearchSpace:
    """The model of table 3 of that paper; --nodes and --global-batch-size change its scale."""
    return SearchSpace(
        name="llm405b",
        model=Model(
            num_hidden_layers=126,
            hidden_size=16_384,
            intermediate_size=53_248,
            num_attention_heads=128,
            num_key_value_heads=8,
            vocab_size=128_256,
            sequence_length=8192,
            global_batch_size=2048,
            rope_theta=500_000.0,
        ),
        cluster=Cluster(nodes=64, gpus_per_node=8, device=device_named("h100")),
        pipeline_parallel=(1, 2, 4, 5, 8, 10, 16, 20, 32),
    )
