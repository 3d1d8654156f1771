"""Which values of a dimension are legal: one rule per dimension, each with its reason.

A rule sees the dimensions that were chosen before its own (the order of the fields of `Layout`), so
a space can be walked dimension by dimension and an illegal branch is never entered.
"""

from autotune.dimension import Alias, Chosen, Task

# With one replica there is nothing to shard, so all stages are the same layout; this is its name.
_STAGE_OF_ONE_REPLICA = 1


def tensor_parallel(chosen: Chosen, task: Task) -> str | None:
    """Every matrix is cut into equal parts."""
    size, model = chosen["tensor_parallel"], task.model
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        if getattr(model, name) % size:
            return f"tensor_parallel must divide {name}, got {size} and {getattr(model, name)}"
    return None


def pipeline_parallel(chosen: Chosen, task: Task) -> str | None:
    """Whole replicas fill the cluster, and every stage has a block."""
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
    """What DeepSpeed's engines offer."""
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
    """With one replica all ZeRO stages are the same layout."""
    if chosen["data_parallel"] > 1:
        return None
    name = _STAGE_OF_ONE_REPLICA
    reason = f"data_parallel 1 has nothing to shard: all ZeRO stages are one layout, named {name}"
    return Alias(name, reason)


def micro_batch_size(chosen: Chosen, task: Task) -> str | None:
    """Replicas share the batch equally."""
    replicas, size = chosen["data_parallel"], chosen["micro_batch_size"]
    if task.model.global_batch_size % (replicas * size):
        return (
            "data_parallel * micro_batch_size must divide global_batch_size, "
            f"got {replicas} * {size} and {task.model.global_batch_size}"
        )
    return None


def sequence_parallel(chosen: Chosen, task: Task) -> str | None:
    """The sequence is cut over the tensor-parallel ranks."""
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
    """The device has the kernel, and the kernel has the precision."""
    kernel = chosen["attention_kernel"]
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
"""Attention kernels that on GPUs have no fp32 form."""


def remaining_devices(chosen: Chosen, task: Task) -> int:
    """Replicas: what tensor and pipeline parallelism leave of the cluster."""
    assert task.cluster is not None, "only a space's walk asks what follows"
    ranks: int = chosen["tensor_parallel"] * chosen["pipeline_parallel"]
    return task.cluster.devices // ranks


def remaining_batch(chosen: Chosen, task: Task) -> int:
    """Micro-batches: what replicas and their micro-batch leave of the batch."""
    sequences: int = chosen["data_parallel"] * chosen["micro_batch_size"]
    return task.model.global_batch_size // sequences
