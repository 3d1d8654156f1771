"""Reads arguments with Megatron-LM's own parser and validation: a JSON object a line."""

import contextlib
import io
import json
import os
import sys
import types
import typing

import torch
import typing_extensions

# Megatron-LM is for Python 3.12; of what is new in that, it uses this decorator alone.
if not hasattr(typing, "override"):
    typing.override = typing_extensions.override

# The validation asks the GPU for its generation; without one these are the answers of an H100.
if not torch.cuda.is_available():
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(major=9)

from megatron.training.arguments import (
    core_transformer_config_from_args,
    parse_args,
    validate_args,
)


def read(job: dict) -> dict:
    """The values that Megatron-LM makes of the arguments of one launch."""
    os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
    os.environ.update(job["environment"], RANK="0", WORLD_SIZE=str(job["world_size"]))
    # Fused rotary embeddings come with Transformer Engine, which is not installed.
    sys.argv = ["pretrain_gpt.py", *job["arguments"], "--no-rope-fusion"]
    with contextlib.redirect_stdout(io.StringIO()):
        arguments = parse_args()
        validate_args(arguments)
        config = core_transformer_config_from_args(arguments)
    return {
        name: getattr(value, "name", None) or getattr(value, "__name__", None) or value
        for source in (config, arguments)
        for name, value in vars(source).items()
        if isinstance(value, (int, float, str, list, tuple, type(None)))
        or name in ("attention_backend", "activation_func")
    }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(read(json.loads(line)), default=str), flush=True)
