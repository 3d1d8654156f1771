"""Reads exports with accelerate, transformers and DeepSpeed: a JSON object a line."""

import json
import os
import sys
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")


def read_accelerate(arguments: list[str], variables: dict[str, str]) -> dict[str, Any]:
    """What `accelerate launch` tells the script, and the plugins that are made of it."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, TorchDynamoPlugin
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    before = dict(os.environ)
    os.environ.update(variables)
    given, file, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if given.use_deepspeed:
        # As launch_command does.
        given.deepspeed_fields_from_accelerate_config = ",".join(file.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(given)
    else:
        environment = prepare_multi_gpu_env(given)
    os.environ.update(environment)
    try:
        compiled = TorchDynamoPlugin()
        found: dict[str, Any] = {
            "processes": given.num_processes,
            "machines": given.num_machines,
            "dynamo": compiled.backend.value,
            "by_block": compiled.use_regional_compilation,
            "accumulation": int(os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"]),
        }
        if given.use_deepspeed:
            plugin = DeepSpeedPlugin()
            return {**found, "zero3_init": plugin.zero3_init_flag, **plugin.deepspeed_config}
        sharded = FullyShardedDataParallelPlugin()
        found |= {
            "fsdp_version": sharded.fsdp_version,
            "reshards": sharded.reshard_after_forward,
            "checkpointing": sharded.activation_checkpointing,
            "precision": environment["ACCELERATE_MIXED_PRECISION"],
        }
        if given.use_parallelism_config:
            parallel = ParallelismConfig()
            found |= {"tp": parallel.tp_size, "dp": parallel.dp_shard_size}
        return found
    finally:
        os.environ.clear()
        os.environ.update(before)


def read_trainer(file: str) -> dict[str, Any]:
    """The TrainingArguments of a JSON file, which check DeepSpeed's configuration."""
    from transformers import HfArgumentParser, TrainingArguments

    (arguments,) = HfArgumentParser((TrainingArguments,)).parse_json_file(file)
    config = arguments.hf_deepspeed_config
    config.trainer_config_finalize(arguments, None, 1)
    return {
        **{
            name: getattr(arguments, name)
            for name in (
                "per_device_train_batch_size",
                "gradient_accumulation_steps",
                "bf16",
                "max_grad_norm",
                "gradient_checkpointing",
                "torch_compile",
            )
        },
        "zero_stage": config.get_value("zero_optimization.stage"),
        "mismatches": config.mismatches,
    }


def read_deepspeed(config: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's own view of a configuration, in one replica."""
    from deepspeed import DeepSpeedConfig

    read = DeepSpeedConfig(config)
    return {
        "train_batch_size": read.train_batch_size,
        "train_micro_batch_size_per_gpu": read.train_micro_batch_size_per_gpu,
        "gradient_accumulation_steps": read.gradient_accumulation_steps,
        "gradient_clipping": read.gradient_clipping,
        "zero_stage": int(read.zero_optimization_stage),
        "bf16": read.bfloat16_config.enabled,
    }


if __name__ == "__main__":
    for line in sys.stdin:
        job = json.loads(line)
        reader = globals()[f"read_{job.pop('of')}"]
        print(json.dumps(reader(**job)), flush=True)
