"""torchtitan, read by its own configuration parser; its model is built without memory."""

from pathlib import Path

import pytest

from autotune.cost.stages import blocks_per_stage
from autotune.export import format_named
from autotune.trial.deepspeed_config import GRADIENT_CLIPPING
from tests.frameworks import (
    ARCHITECTURES,
    FRAMEWORKS,
    exported,
    needs_frameworks,
    read,
    request_of,
    started,
    version_in,
)

pytestmark = [needs_frameworks(), pytest.mark.slow, pytest.mark.timeout(900)]

REQUESTS = [request_of(name) for name in ARCHITECTURES] + [
    request_of("llama-3.1-8b", precision="fp32")
]
CHECKPOINTING = {"none": "NoneType", "selective": "SelectiveAC.Config", "full": "FullAC.Config"}


def test_the_version_is_the_installed_one() -> None:
    version = version_in(FRAMEWORKS, "torchtitan")
    assert format_named("torchtitan").checked_against.startswith(f"torchtitan {version} ")


def test_torchtitan_reads_its_configuration(tmp_path: Path) -> None:
    cases, jobs = [], []
    for folder, layout, request in exported(tmp_path, "torchtitan", REQUESTS):
        arguments, environment = started(folder, "torchrun")
        module = arguments.index("--module")
        assert arguments[module - 2 : module] == ["-m", "torchtitan.train"]
        assert environment["PYTHONPATH"] == str(folder)
        cases.append((layout, request.space))
        jobs.append({"folder": str(folder), "arguments": arguments[module:], "world_size": 8})
    kinds = {space.model.architecture for _, space in cases}
    assert kinds == {"llama", "mistral", "qwen3", "qwen3_moe", "mixtral", "phi3"}
    for (layout, space), found in zip(
        cases, read("read_torchtitan", jobs, FRAMEWORKS), strict=True
    ):
        model, pipelined = space.model, layout.pipeline_parallel > 1
        steps = layout.gradient_accumulation_steps
        wanted = {
            "parameters": model.parameters,
            "theta": model.rope_theta,
            "epsilon": model.rms_norm_eps,
            "seq_len": model.sequence_length,
            "global_batch_size": model.global_batch_size,
            "local_batch_size": layout.micro_batch_size * (steps if pipelined else 1),
            "pipeline_parallel_microbatch_size": layout.micro_batch_size,
            "tensor_parallel_degree": layout.tensor_parallel,
            "pipeline_parallel_degree": layout.pipeline_parallel,
            "data_parallel_replicate_degree": 1 if layout.zero_stage else layout.data_parallel,
            "data_parallel_shard_degree": layout.data_parallel if layout.zero_stage else 1,
            "fsdp_reshard_after_forward": "always" if layout.zero_stage == 3 else "never",
            "enable_sequence_parallel": layout.sequence_parallel,
            "activation_checkpoint": CHECKPOINTING[layout.activation_checkpointing],
            "compile": layout.torch_compile,
            "max_norm": GRADIENT_CLIPPING,
            "mixed_precision_param": {"bf16": "bfloat16", "fp32": "float32"}[space.precision],
            "blocks_per_stage": list(blocks_per_stage(model, layout.pipeline_parallel, "blocks")),
        }
        assert {name: found[name] for name in wanted} == wanted, layout.describe()
        plain = layout.attention_kernel == "math" or space.precision == "fp32"
        kernel = "FlexAttention" if plain else "VarlenAttention"
        assert found["attention"] == f"{kernel}.Config"
