"""job.toml, read by the parser of torchtitan 0.2."""

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

from autotune.export._torchtitan import RELEASE_OF_TOML
from autotune.trial.deepspeed_config import GRADIENT_CLIPPING
from tests.frameworks import exported, read, request_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torchtitan") is None, reason="torchtitan is not installed"
)
REQUESTS = [request_of("llama-3.1-8b"), request_of("llama-3.1-8b", precision="fp32")]


def test_torchtitan_reads_its_toml(tmp_path: Path) -> None:
    assert importlib.metadata.version("torchtitan") == RELEASE_OF_TOML
    cases = [(f, it, r.space) for f, it, r in exported(tmp_path, "torchtitan", REQUESTS)]
    jobs = [{"file": str(folder / "job.toml")} for folder, _, _ in cases]
    for (_, layout, space), found in zip(cases, read("read_torchtitan_toml", jobs), strict=True):
        model, pipelined = space.model, layout.pipeline_parallel > 1
        steps = layout.gradient_accumulation_steps
        wanted = {
            "training": {
                "local_batch_size": layout.micro_batch_size * (steps if pipelined else 1),
                "global_batch_size": model.global_batch_size,
                "seq_len": model.sequence_length,
                "max_norm": GRADIENT_CLIPPING,
                "mixed_precision_param": {"bf16": "bfloat16", "fp32": "float32"}[space.precision],
            },
            "parallelism": {
                "data_parallel_replicate_degree": 1 if layout.zero_stage else layout.data_parallel,
                "data_parallel_shard_degree": layout.data_parallel if layout.zero_stage else 1,
                "fsdp_reshard_after_forward": "always" if layout.zero_stage == 3 else "never",
                "tensor_parallel_degree": layout.tensor_parallel,
                "pipeline_parallel_degree": layout.pipeline_parallel,
                "pipeline_parallel_microbatch_size": layout.micro_batch_size,
            },
            "activation_checkpoint": {"mode": layout.activation_checkpointing},
            "compile": {"enable": layout.torch_compile},
        }
        for section, values in wanted.items():
            assert {name: found[section][name] for name in values} == values, layout.describe()
