"""Reads job.toml with the parser of torchtitan 0.2: a JSON object a line."""

import dataclasses
import json
import sys
import types

# Its kernels for experts need Triton, which is not installed; parsing does not.
kernels = types.ModuleType("torchtitan.models.moe.kernels")
kernels.generate_permute_indices = None
sys.modules[kernels.__name__] = kernels

from torchtitan.config import ConfigManager  # noqa: E402

for line in sys.stdin:
    config = ConfigManager().parse_args(["--job.config_file", json.loads(line)["file"]])
    print(json.dumps(dataclasses.asdict(config)))
