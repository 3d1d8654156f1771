"""Reads the overrides of a Megatron-Bridge recipe: a JSON object a line.

The package needs Transformer Engine, which needs a GPU, so it cannot be imported. Overrides are
parsed by Hydra, as it does; names are looked up in its source and in megatron-core's dataclasses;
and megatron-core's TransformerConfig checks the values of the model.
"""

import ast
import dataclasses
import functools
import json
import sys
import typing
from pathlib import Path
from typing import Any

import torch
import typing_extensions

if not hasattr(typing, "override"):
    typing.override = typing_extensions.override

import megatron.core
from hydra.core.override_parser.overrides_parser import OverridesParser
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig
from torch.nn import functional

_SOURCE = Path(next(iter(megatron.core.__path__))).parent / "bridge"
# The dataclasses of a section: those of megatron-core, and classes in the package's source.
_SECTIONS: dict[str, tuple[type | None, str, str]] = {
    "model": (TransformerConfig, "models/gpt_provider.py", "GPTModelProvider"),
    "ddp": (DistributedDataParallelConfig, "training/config.py", "DistributedDataParallelConfig"),
    "optimizer": (OptimizerConfig, "training/config.py", "OptimizerConfig"),
    "train": (None, "training/config.py", "TrainingConfig"),
    "dist": (None, "training/config.py", "DistributedInitConfig"),
    "dataset": (None, "training/config.py", "GPTDatasetConfig"),
    "logger": (None, "training/config.py", "LoggerConfig"),
    "checkpoint": (None, "training/config.py", "CheckpointConfig"),
}
_CONTAINER = ("training/config.py", "ConfigContainer")


def _own_fields(file: str, name: str) -> set[str]:
    for folder in (_SOURCE, _SOURCE.parent):
        if not (folder / file).exists():
            continue
        for node in ast.walk(ast.parse((folder / file).read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name == name:
                found = {it.target.id for it in node.body if isinstance(it, ast.AnnAssign)}
                for base in node.bases:
                    found |= _fields_of_base(ast.unparse(base))
                return found
    raise LookupError(f"no {name} in {file}")


def _fields_of_base(name: str) -> set[str]:
    name = name.removeprefix("MCore").removeprefix("MTrain")
    for file in (
        *sorted((_SOURCE.parent / "training" / "config").glob("*.py")),
        _SOURCE.parent / "core/datasets/gpt_dataset.py",
        _SOURCE / "training/config.py",
    ):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name == name:
                return {it.target.id for it in node.body if isinstance(it, ast.AnnAssign)}
    return set()


def _known(section: str) -> set[str]:
    core, file, name = _SECTIONS[section]
    inherited = {field.name for field in dataclasses.fields(core)} if core else set()
    return inherited | _own_fields(file, name)


@functools.cache
def _parsed(text: str) -> tuple[str, Any]:
    (override,) = OverridesParser.create().parse_overrides(overrides=[text])
    return override.get_key_element(), override.value()


def read(job: dict[str, Any]) -> dict[str, Any]:
    """Values by section and field; what is no field is an error."""
    found: dict[str, Any] = {}
    for text in job["overrides"]:
        name, value = _parsed(text)
        found[name] = value
    for key in found:
        section, _, field = key.partition(".")
        assert section in SECTIONS, key
        assert not field or field in KNOWN[section], f"{key} is no field"
    core = {field.name for field in dataclasses.fields(TransformerConfig)}
    values = {
        key.partition(".")[2]: value
        for key, value in found.items()
        if key.startswith("model.") and key.partition(".")[2] in core
    }
    if "num_layers" not in values:
        return found  # the recipe says what the model is
    values["activation_func"] = {"silu": functional.silu, "gelu": functional.gelu}[
        values["activation_func"]
    ]
    if found["mixed_precision"] == "bf16_mixed":
        values |= {"bf16": True, "pipeline_dtype": torch.bfloat16}  # as this preset does
    config = TransformerConfig(**values)
    return {**found, "kv_channels": config.kv_channels}


SECTIONS = _own_fields(*_CONTAINER)
KNOWN = {section: _known(section) for section in _SECTIONS}

if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(read(json.loads(line)), default=str), flush=True)
