"""Llama 13B at 2k tokens on 8 DGX A100: shapes of Hagemann et al. 2023 (arXiv 2311.05610)."""

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.model import Model
from autotune.space import SearchSpace


def space() -> SearchSpace:
    """The paper's model, batch and vocabulary; the space also has ZeRO stages and kernels."""
    return SearchSpace(
        name="llm13b",
        model=Model(
            num_hidden_layers=40,
            hidden_size=5120,
            intermediate_size=13824,
            num_attention_heads=40,
            num_key_value_heads=40,
            vocab_size=128_000,
            sequence_length=2048,
            global_batch_size=2_048,
        ),
        cluster=Cluster(nodes=8, gpus_per_node=8, device=device_named("a100-80gb")),
    )
