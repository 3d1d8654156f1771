"""Reads a layout_config.py with torchtitan's own parser and builds its model without memory: a JSON
object a line."""

import dataclasses
import importlib
import json
import sys

import torch
from torchtitan.config import ConfigManager
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.pipeline_parallel import _generate_llm_fqn_per_model_part


def read(job: dict) -> dict:
    """The values of the configuration, and what they make."""
    sys.path.insert(0, job["folder"])
    sys.modules.pop("layout_config", None)
    importlib.invalidate_caches()
    config = ConfigManager().parse_args(job["arguments"])
    sys.path.remove(job["folder"])
    parallel = config.parallelism
    dims = ParallelDims(
        dp_replicate=parallel.data_parallel_replicate_degree,
        dp_shard=parallel.data_parallel_shard_degree,
        cp=1,
        tp=parallel.tensor_parallel_degree,
        pp=parallel.pipeline_parallel_degree,
        ep=1,
        world_size=job["world_size"],
    )
    model_config = config.model_spec.model
    model_config.update_from_config(config=config)
    with torch.device("meta"):
        model = model_config.build()
    model.verify_module_protocol()
    stages = _generate_llm_fqn_per_model_part(
        dims.pp,
        len(model_config.layers),
        parallel.pipeline_parallel_first_stage_less_layers,
        parallel.pipeline_parallel_last_stage_less_layers,
    )
    attention = model_config.layers[0].attention
    return {
        **dataclasses.asdict(config.training),
        **dataclasses.asdict(parallel),
        "compile": config.compile.enable,
        "activation_checkpoint": type(config.activation_checkpoint).__qualname__,
        "attention": type(attention.inner_attention).__qualname__,
        "theta": attention.rope.theta,
        "epsilon": model_config.norm.eps,
        "parameters": sum(p.numel() for p in set(model.parameters())),
        "blocks_per_stage": [sum(n.startswith("layers.") for n in stage) for stage in stages],
    }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(read(json.loads(line))), flush=True)
