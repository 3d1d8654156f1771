"""Llama 30B at 8k tokens on 16 DGX A100: shapes of Hagemann et al. 2023 (arXiv 2311.05610)."""

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.model import Model
from autotune.space import SearchSpace


def space() -> SearchSpace:
    """The paper's model, batch and vocabulary; the space also has ZeRO stages and kernels."""
    return SearchSpace(
        name="llm30b_8k",
        model=Model(
            num_hidden_layers=60,
            hidden_size=6656,
            intermediate_size=17888,
            num_attention_heads=52,
            num_key_value_heads=52,
            vocab_size=128_000,
            sequence_length=8192,
            global_batch_size=512,
        ),
        cluster=Cluster(nodes=16, gpus_per_node=8, device=device_named("a100-80gb")),
    )
