"""The DeepSpeed configuration of a layout, for the workers and for the export."""

from collections.abc import Mapping
from typing import Any, Literal

from autotune.layout import Layout
from autotune.model import Model, Precision

GRADIENT_CLIPPING = 1.0
"""Maximum global gradient norm. It equals DeepSpeed's default, but is written explicitly."""

# With DeepSpeed's default bucket size ZeRO allocates 2,000,000,000 bytes for any model; 50 million
# bf16 elements (100 MB) are enough to use a network link's bandwidth.
LARGEST_BUCKET = 50_000_000
"""Largest size of a communication bucket, in elements."""
SMALLEST_BUCKET = 65_536
"""Smallest size of a communication bucket, in elements."""


LIVE_PARAMETERS = 1_000_000_000
"""ZeRO 3 gathers no further weights while a rank has so many, and keeps them for the backward pass
(DeepSpeed's default)."""
# A bucket is reduced in as many messages as there are ranks with a shard in it, at most this many.
_MOST_SHARDS_IN_BUCKET = 16

POINTWISE_SWITCH = "AUTOTUNE_POINTWISE"
"""Environment variable of the workers; `eager`: do not compile element-wise operations on GPUs."""


def engine_of(layout: Layout) -> Literal["plain", "pipeline"]:
    """Which DeepSpeed engine trains the layout.

    The pipeline engine is used only with several stages, because it never supports ZeRO 2 and 3.
    """
    return "pipeline" if layout.pipeline_parallel > 1 else "plain"


def deepspeed_config(
    layout: Layout,
    model: Model,
    *,
    precision: Precision,
    overlap_communication: bool,
) -> dict[str, Any]:
    """DeepSpeed's JSON configuration of the layout, complete for any training script.

    `overlap_communication` reduces gradients during the backward pass, which needs the streams of a
    GPU. The optimiser is not configured here: the workers pass torch's AdamW, because DeepSpeed
    would compile its own at the first start.
    """
    local_parameters = model.parameters // (layout.tensor_parallel * layout.pipeline_parallel)
    bucket = max(SMALLEST_BUCKET, min(LARGEST_BUCKET, local_parameters))
    zero: dict[str, Any] = {
        "stage": layout.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        # The pipeline engine switches it off.
        "overlap_comm": overlap_communication
        and layout.data_parallel > 1
        and engine_of(layout) == "plain",
        "contiguous_gradients": True,
    }
    if layout.zero_stage == 3:
        zero["stage3_prefetch_bucket_size"] = bucket
        zero["stage3_max_live_parameters"] = LIVE_PARAMETERS
    elif layout.zero_stage > 0 and local_parameters // layout.data_parallel > (
        bucket // _MOST_SHARDS_IN_BUCKET
    ):
        # Each shard of the gradients is sent to the rank that needs it, which is half the traffic
        # of an all-reduce.
        zero["use_multi_rank_bucket_allreduce"] = False
    return {
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.gradient_accumulation_steps,
        "gradient_clipping": GRADIENT_CLIPPING,
        "steps_per_print": 1_000_000_000,
        # The timer would synchronise with the device twice per micro-batch.
        "timers": {"throughput": {"enabled": False}},
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": zero,
        # Both default to True, which silently gives wrong results with sequence parallelism.
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
    }


def worker_environment(device_kind: Literal["gpu", "cpu"]) -> dict[str, str]:
    """Environment variables that a worker needs before it imports torch and DeepSpeed."""
    common = {"DS_LOG_LEVEL": "warning", "PYTHONWARNINGS": "ignore::FutureWarning"}
    if device_kind == "gpu":
        return {
            **common,
            "DS_ACCELERATOR": "cuda",
            # Detect GPUs with NVML: initialising CUDA in the parent breaks it in forked ranks.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            # Segments that grow avoid fragmentation, which would make a layout near the limit run
            # out of memory.
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            # One compiler per rank: a pool of processes is not worth it for a few small kernels.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
    return {
        **common,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        # One malloc arena: each further one reserves 64 MB, which counts against the memory limit.
        "MALLOC_ARENA_MAX": "1",
    }


def clips_itself(layout: Layout) -> bool:
    """Whether the workers, not DeepSpeed, compute the gradient norm and clip by it.

    With ZeRO 3 they cannot: no rank has whole gradients. Without ZeRO, in fp32, DeepSpeed cannot:
    it neither reports the norm nor clips by that of all pipeline stages.
    """
    return layout.zero_stage < 3


def without_clipping(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration for workers that clip themselves: DeepSpeed computes no gradient norm."""
    config = {**config, "gradient_clipping": 0.0}
    zero = config.get("zero_optimization", {})
    if zero.get("stage"):  # without ZeRO, DeepSpeed refuses the first of the two switches
        config["zero_optimization"] = {**zero, "compute_grad_norm": False}
        # The check would synchronise with the device.
        config["bf16"] = {**config.get("bf16", {}), "check_grad_overflow": False}
    return config
