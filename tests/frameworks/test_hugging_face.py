"""deepspeed, accelerate and hf-trainer, read by DeepSpeed, accelerate and transformers."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import pytest

from autotune.export import format_named
from autotune.trial.deepspeed_config import GRADIENT_CLIPPING
from tests.frameworks import exported, read, request_of, started

REQUESTS = [request_of("llama-3.1-8b"), request_of("llama-3.1-8b", precision="fp32")]
ONE_PIECE = [
    dataclasses.replace(it, space=it.space.restricted({"tensor_parallel": (1,)})) for it in REQUESTS
]


@pytest.mark.parametrize(
    ("form", "package"),
    [("deepspeed", "deepspeed"), ("accelerate", "accelerate"), ("hf-trainer", "transformers")],
)
def test_the_version_is_the_installed_one(form: str, package: str) -> None:
    version = importlib.metadata.version(package)
    assert format_named(form).checked_against == f"{package} {version}"


def test_deepspeed_reads_its_configuration(tmp_path: Path) -> None:
    cases = list(exported(tmp_path, "deepspeed", REQUESTS))
    jobs = [
        {"of": "deepspeed", "config": json.loads((folder / "deepspeed.json").read_text())}
        for folder, _, _ in cases
    ]
    assert len({layout.zero_stage for _, layout, _ in cases}) == 4
    for (_, layout, request), found in zip(cases, read("read_hugging_face", jobs), strict=True):
        found["train_batch_size"] *= layout.data_parallel
        assert found == {
            "train_batch_size": request.space.model.global_batch_size,
            "train_micro_batch_size_per_gpu": layout.micro_batch_size,
            "gradient_accumulation_steps": layout.gradient_accumulation_steps,
            "gradient_clipping": GRADIENT_CLIPPING,
            "zero_stage": layout.zero_stage,
            "bf16": request.space.precision == "bf16",
        }


def test_accelerate_reads_its_files(tmp_path: Path) -> None:
    cases, jobs = [], []
    for folder, layout, request in (
        *exported(tmp_path, "accelerate", REQUESTS),
        *exported(tmp_path / "one", "accelerate", ONE_PIECE),
    ):
        for config in ("deepspeed", "fsdp"):
            if not (folder / f"{config}.yaml").exists():
                continue
            arguments, environment = started(
                folder, "accelerate", TRAIN_SCRIPT="train.py", CONFIG=config
            )
            variables = {name: environment[name] for name in environment if "ACCEL" in name}
            cases.append((config, layout, request))
            jobs.append({"of": "accelerate", "arguments": arguments[1:], "variables": variables})
    kinds = {(config, layout.zero_stage) for config, layout, _ in cases}
    assert kinds >= {("deepspeed", 0), ("deepspeed", 1), ("fsdp", 2), ("fsdp", 3)}
    found = read("read_hugging_face", jobs)
    assert any("tp" in values for values in found)
    for (config, layout, request), values in zip(cases, found, strict=True):
        assert values["processes"] == 8 and values["machines"] == 1
        assert values["accumulation"] == layout.gradient_accumulation_steps
        compiled = ("INDUCTOR", True) if layout.torch_compile else ("NO", False)
        assert (values["dynamo"], values["by_block"]) == compiled
        bf16 = request.space.precision == "bf16"
        if config == "deepspeed":
            assert values["zero_optimization"]["stage"] == layout.zero_stage
            assert values["train_micro_batch_size_per_gpu"] == layout.micro_batch_size
            assert values["gradient_accumulation_steps"] == layout.gradient_accumulation_steps
            assert values["bf16"]["enabled"] == bf16
        else:
            assert values["fsdp_version"] == 2
            assert values["reshards"] == (layout.zero_stage == 3)
            assert values["checkpointing"] == (layout.activation_checkpointing == "full")
            assert values["precision"] == ("bf16" if bf16 else "no")
            parallel = (values.get("tp", 1), values.get("dp", layout.data_parallel))
            assert parallel == (layout.tensor_parallel, layout.data_parallel)


def test_the_trainer_reads_its_arguments(tmp_path: Path) -> None:
    # As without a GPU it refuses bfloat16 for one.
    requests = [request_of("llama-3.1-8b", device="cpu", precision=p) for p in ("bf16", "fp32")]
    cases = list(exported(tmp_path, "hf-trainer", requests))
    jobs = [
        {"of": "trainer", "file": str(folder / "training_arguments.json")} for folder, _, _ in cases
    ]
    assert len({layout.zero_stage for _, layout, _ in cases}) == 4
    for (folder, layout, request), found in zip(
        cases, read("read_hugging_face", jobs), strict=True
    ):
        assert found["mismatches"] == []
        assert found["per_device_train_batch_size"] == layout.micro_batch_size
        assert found["gradient_accumulation_steps"] == layout.gradient_accumulation_steps
        assert found["bf16"] == (request.space.precision == "bf16")
        assert found["gradient_checkpointing"] == (layout.activation_checkpointing == "full")
        assert found["torch_compile"] == layout.torch_compile
        assert found["zero_stage"] == layout.zero_stage
        arguments, _ = started(folder, "torchrun", TRAIN_SCRIPT="train.py")
        assert arguments[-2:] == ["train.py", str(folder / "training_arguments.json")]
