"""The DeepSpeed configuration of a layout: what the workers run and what is exported."""

from collections.abc import Mapping
from typing import Any, Literal

from autotune.layout import Layout
from autotune.model import Model, Precision

GRADIENT_CLIPPING = 1.0
"""Maximum global gradient norm; DeepSpeed's unwritten default, here on the record."""

# DeepSpeed's default bucket makes ZeRO allocate 2,000,000,000 bytes whatever the model; 50 million
# bf16 elements (100 MB) still fill a network link.
LARGEST_BUCKET = 50_000_000
"""Elements of a communication bucket at most."""
SMALLEST_BUCKET = 65_536
"""Elements of a communication bucket at least."""


POINTWISE_SWITCH = "AUTOTUNE_POINTWISE"
"""Environment variable of the workers: `eager` leaves element-wise chains uncompiled on GPUs."""


def engine_of(layout: Layout) -> Literal["plain", "pipeline"]:
    """Which DeepSpeed engine trains the layout.

    The pipeline engine is taken only where there are stages: it refuses ZeRO 2 and 3 even without.
    """
    return "pipeline" if layout.pipeline_parallel > 1 else "plain"


def deepspeed_config(
    layout: Layout,
    model: Model,
    *,
    precision: Precision,
    overlap_communication: bool,
    own_clipping: bool = False,
) -> dict[str, Any]:
    """DeepSpeed's JSON configuration of the layout.

    `overlap_communication` starts reducing gradients during the backward pass; CPUs have no streams
    to do so. `own_clipping` leaves the gradient norm and clipping to the workers wherever they can
    (`clips_itself`); what is exported for others has DeepSpeed do it. The optimiser is not part of
    it: the workers pass torch's AdamW, because DeepSpeed would compile its own at the first start.
    """
    local_parameters = model.parameters // (layout.tensor_parallel * layout.pipeline_parallel)
    bucket = max(SMALLEST_BUCKET, min(LARGEST_BUCKET, local_parameters))
    zero: dict[str, Any] = {
        "stage": layout.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": overlap_communication and layout.data_parallel > 1,
        "contiguous_gradients": True,
    }
    if layout.zero_stage == 3:
        zero["stage3_prefetch_bucket_size"] = bucket
    clipping, bf16 = GRADIENT_CLIPPING, {"enabled": precision == "bf16"}
    if _cannot_clip(layout, precision):
        clipping = 0.0
    elif own_clipping and layout.zero_stage in (1, 2):
        clipping = 0.0
        zero["compute_grad_norm"] = False
        # DeepSpeed would wait for the device to say that no gradient is infinite.
        bf16["check_grad_overflow"] = False
    return {
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.gradient_accumulation_steps,
        "gradient_clipping": clipping,
        "steps_per_print": 1_000_000_000,
        # It would wait for the device twice in every micro-batch.
        "timers": {"throughput": {"enabled": False}},
        "bf16": bf16,
        "zero_optimization": zero,
        # Both default to True, which is silently wrong with sequence parallelism.
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
    }


def worker_environment(device_kind: Literal["gpu", "cpu"]) -> dict[str, str]:
    """What must be in a worker's environment before it imports torch and DeepSpeed."""
    common = {"DS_LOG_LEVEL": "warning", "PYTHONWARNINGS": "ignore::FutureWarning"}
    if device_kind == "gpu":
        return {
            **common,
            "DS_ACCELERATOR": "cuda",
            # Asking CUDA itself whether there is a GPU would spoil it for ranks that are forked.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            # Memory that grows page by page: otherwise blocks of odd sizes leave gaps that nothing
            # fits, and a layout near the edge runs out of memory that it does not need.
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            # Otherwise every rank starts a pool of compilers, for a handful of small kernels.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
    return {
        **common,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        # One heap: each further arena reserves 64 MB of the private memory that a limit counts.
        "MALLOC_ARENA_MAX": "1",
    }


def clips_itself(layout: Layout, precision: Precision, config: Mapping[str, Any]) -> bool:
    """Whether the workers compute the gradient norm, and clip by it, under that configuration."""
    norm_by_deepspeed = config["zero_optimization"].get("compute_grad_norm", True)
    return _cannot_clip(layout, precision) or not norm_by_deepspeed


def _cannot_clip(layout: Layout, precision: Precision) -> bool:
    """Whether DeepSpeed neither reports the gradient norm nor clips by the global one."""
    return precision == "fp32" and layout.zero_stage == 0
