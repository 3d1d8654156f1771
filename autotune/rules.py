"""Constraints on the dimensions: a rule returns why a value is illegal, or None.

A rule sees only the dimensions before its own, in the order of the fields of `Layout`. So the
enumeration of a space can cut a whole branch at the first illegal value.
"""

from autotune.dimension import Alias, Chosen, Task

# With one replica ZeRO has nothing to shard: all stages are one layout, generated as this stage.
_STAGE_OF_ONE_REPLICA = 1


def tensor_parallel(chosen: Chosen, task: Task) -> str | None:
    """The size must divide the heads, the feed-forward width and the vocabulary."""
    size, model = chosen["tensor_parallel"], task.model
    divided = {
        name: getattr(model, name)
        for name in (
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "vocab_size",
        )
    }
    if model.experts is not None:
        divided["experts.intermediate_size"] = model.experts.intermediate_size
        divided["experts.shared_intermediate_size"] = model.experts.shared_intermediate_size
    for name, number in divided.items():
        if number % size:
            return f"tensor_parallel must divide {name}, got {size} and {number}"
    return None


def pipeline_parallel(chosen: Chosen, task: Task) -> str | None:
    """Replicas must use all devices of the cluster, and every stage must have a block."""
    tensor, stages = chosen["tensor_parallel"], chosen["pipeline_parallel"]
    if task.cluster is not None and task.cluster.devices % (tensor * stages):
        return (
            "tensor_parallel * pipeline_parallel must divide the devices of the cluster, "
            f"got {tensor} * {stages} and {task.cluster.devices}"
        )
    if stages > task.model.num_hidden_layers:
        return (
            "pipeline_parallel must be at most num_hidden_layers (no stage without a block), "
            f"got {stages} and {task.model.num_hidden_layers}"
        )
    return None


def zero_stage(chosen: Chosen, task: Task) -> str | None:
    """The stage must be one that DeepSpeed's engine supports, where it trains."""
    if not task.deepspeed_engine:
        return None
    stage = chosen["zero_stage"]
    if task.precision == "bf16" and stage == 0:
        return "bf16 needs zero_stage 1 to 3 (DeepSpeed's bf16 stage 0 is stage 1), got 0"
    if chosen["pipeline_parallel"] > 1 and stage > 1:
        return (
            "pipeline_parallel > 1 needs zero_stage 0 or 1 (DeepSpeed's pipeline engine has no "
            f"other), got {stage}"
        )
    return None


def one_stage_of_one_replica(chosen: Chosen) -> Alias | None:
    """With one replica all ZeRO stages are equivalent."""
    if chosen["data_parallel"] > 1:
        return None
    name = _STAGE_OF_ONE_REPLICA
    reason = f"data_parallel 1 has nothing to shard: all ZeRO stages are one layout, named {name}"
    return Alias(name, reason)


def micro_batch_size(chosen: Chosen, task: Task) -> str | None:
    """The global batch must be a multiple of data_parallel * micro_batch_size."""
    replicas, size = chosen["data_parallel"], chosen["micro_batch_size"]
    if task.model.global_batch_size % (replicas * size):
        return (
            "data_parallel * micro_batch_size must divide global_batch_size, "
            f"got {replicas} * {size} and {task.model.global_batch_size}"
        )
    return None


def sequence_parallel(chosen: Chosen, task: Task) -> str | None:
    """The sequence must split evenly over more than one tensor-parallel rank."""
    tensor = chosen["tensor_parallel"]
    if not chosen["sequence_parallel"]:
        return None
    if tensor == 1:
        return "sequence_parallel needs tensor_parallel > 1, got 1"
    if task.model.sequence_length % tensor:
        return (
            "tensor_parallel must divide sequence_length with sequence_parallel, "
            f"got {tensor} and {task.model.sequence_length}"
        )
    return None


def attention_kernel(chosen: Chosen, task: Task) -> str | None:
    """The device must have the kernel, and the kernel must support precision and model."""
    kernel, model = chosen["attention_kernel"], task.model
    if kernel in PLAIN_KERNELS:
        if model.attention_softcap is not None:
            return f"attention_kernel {kernel} cannot cap scores (attention_softcap); math can"
        windows = {model.window_of(block) for block in range(model.num_hidden_layers)}
        shorter = [w for w in windows if w is not None and w < model.sequence_length]
        if shorter:
            return (
                f"attention_kernel {kernel} has no sliding window (math has), got one of "
                f"{shorter[0]} tokens in sequences of {model.sequence_length}"
            )
    if task.cluster is None:
        return None
    device = task.cluster.device
    if kernel not in device.attention_kernels:
        offered = ", ".join(device.attention_kernels)
        return f"attention_kernel {kernel} does not run on {device.name} (has {offered})"
    if task.precision == "fp32" and device.kind == "gpu" and kernel in HALF_PRECISION_KERNELS:
        return f"attention_kernel {kernel} computes in half precision only, got precision fp32"
    return None


HALF_PRECISION_KERNELS = frozenset({"sdpa_flash", "sdpa_cudnn", "flash_attn", "flash_attn_4"})
"""Attention kernels that do not support fp32 on GPUs."""


PLAIN_KERNELS = frozenset({"sdpa_flash", "sdpa_cudnn"})
"""Attention kernels that know neither sliding windows nor capped scores."""


def remaining_devices(chosen: Chosen, task: Task) -> int:
    """Data-parallel size: devices / (tensor_parallel * pipeline_parallel)."""
    assert task.cluster is not None, "the data-parallel size is derived from a cluster"
    ranks: int = chosen["tensor_parallel"] * chosen["pipeline_parallel"]
    return task.cluster.devices // ranks


def remaining_batch(chosen: Chosen, task: Task) -> int:
    """Gradient accumulation steps: global batch / (data_parallel * micro_batch_size)."""
    sequences: int = chosen["data_parallel"] * chosen["micro_batch_size"]
    return task.model.global_batch_size // sequences
