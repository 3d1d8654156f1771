"""A search space of your own: `python -m autotune.run --space examples/my_space.py --dry-run`.

A space file is executed as Python code, with your rights.
"""

from autotune import Cluster, Model, SearchSpace, device


def space() -> SearchSpace:
    """A 1.3-billion-parameter Llama on two nodes of eight H100."""
    return SearchSpace(
        name="my_space",
        model=Model(
            num_hidden_layers=24,
            hidden_size=2048,
            intermediate_size=5632,
            num_attention_heads=16,
            num_key_value_heads=8,
            vocab_size=32_000,
            sequence_length=4096,
            global_batch_size=256,
        ),
        cluster=Cluster(nodes=2, gpus_per_node=8, device=device("h100")),
        tensor_parallel=(1, 2, 4),
        pipeline_parallel=(1, 2, 4),
        activation_checkpointing=("none", "full"),
        attention_kernel=("sdpa_flash", "flash_attn"),
        rmsnorm_kernel=("fused",),
        max_trials=20,
    )
