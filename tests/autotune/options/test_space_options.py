"""From words to a space: what replaces what, and what a model alone means."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import InputError
from autotune.hardware import Measured, device_named, device_to_json, network_named
from autotune.options.search_options import SearchOptions, request_from_options
from autotune.options.space_options import SpaceOptions, space_from_options

MODEL = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "vocab_size": 32_000,
    "torch_dtype": "bfloat16",
}


def space(**options: Any) -> Any:
    return space_from_options(SpaceOptions(**options))


def test_a_model_alone_makes_a_space_named_after_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "Llama-12"
    folder.mkdir()
    for file, name in ((folder / "config.json", "Llama-12"), (tmp_path / "small.json", "small")):
        file.write_text(json.dumps(MODEL))
        made = space(model=str(file))
        assert made.name == name
        assert made.cluster.describe() == "1 node of 8 h100"
        assert made.model.tokens_per_step == 4 * 2**20
    assert space(model=json.dumps(MODEL)).name == "model"
    request = request_from_options(SearchOptions(model=json.dumps(MODEL), trainable="simulated"))
    assert request.space == space(model=json.dumps(MODEL))


def test_precision_replaces_the_models_and_decides_which_kernels_are_offered() -> None:
    half, full = (space(space="llm13b", precision=p) for p in ("bf16", "fp32"))
    assert (half.precision, full.precision) == ("bf16", "fp32")
    assert {layout.attention_kernel for layout in full.layouts()} == {"math"}
    assert {layout.attention_kernel for layout in half.layouts()} > {"math", "flash_attn"}
    on_cpus = {layout.attention_kernel for layout in space(space="tiny").layouts()}
    assert on_cpus == {"math", "sdpa_flash"}, "CPUs have it in fp32"


def test_a_network_is_chosen_apart_from_the_device() -> None:
    usual, slow = (space(space="llm13b", network=network) for network in (None, "pcie-25g"))
    assert usual.cluster.links == network_named("dgx-a100")
    assert slow.cluster.links == network_named("pcie-25g")
    assert slow.cluster.device == usual.cluster.device


def test_a_network_that_is_named_is_taken_before_that_of_a_calibrated_device(
    tmp_path: Path,
) -> None:
    link = Measured(value=7.0, kind="fitted", source="somebody's runs")
    device = dataclasses.replace(device_named("h100"), constants={"link_efficiency": link})
    file = tmp_path / "mine.json"
    file.write_text(device_to_json(device))
    own = space(space="llm13b", gpu=str(file))
    assert own.cluster.device.constants["link_efficiency"] == link
    other = space(space="llm13b", gpu=str(file), network="dgx-h100")
    assert "link_efficiency" not in other.cluster.device.constants


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fix": ("tensor_parallel=3",)}, None),
        ({"fix": ("speed=3",)}, "^fix: dimension must be one of tensor_parallel, "),
        ({"fix": ("context_parallel=2",)}, "^fix: context parallelism .* is not offered yet"),
        ({"fix": ("gradient_accumulation_steps=2",)}, "^fix: dimension must be one of"),
        ({"network": "dgx"}, "^network: network must be one of a3-high, "),
    ],
)
def test_restrictions(options: dict[str, Any], sentence: str | None) -> None:
    if sentence is None:
        assert space(space="llm13b", **options).layouts() == []
        return
    with pytest.raises(InputError, match=sentence):
        space(space="llm13b", **options)


@pytest.mark.parametrize(
    ("options", "cause", "works"),
    [
        ({"nodes": 3}, "must divide global_batch_size", "nodes 2 or 4"),
        ({"fix": ("tensor_parallel=3",)}, "must divide num_attention", "tensor_parallel 2 or 4"),
        (
            {"global_batch_size": 2047, "fix": ("tensor_parallel=1", "pipeline_parallel=1")},
            "must divide global_batch_size, got 64 * 1 and 2047",
            "global_batch_size 1984 or 2048",
        ),
        ({"fix": ("zero_stage=0",)}, "bf16 needs zero_stage 1 to 3", "zero_stage 1"),
    ],
)
def test_an_empty_space_names_its_first_cause_and_what_would_work(
    options: dict[str, Any], cause: str, works: str
) -> None:
    with pytest.raises(InputError) as error:
        space(space="llm13b", **options).check_not_empty()
    assert str(error.value).startswith("no layout is left in llm13b: ")
    assert cause in str(error.value) and works in str(error.value)
