"""The planner's command line: rankings, explanations, and what it refuses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from autotune.commands.plan import main
from autotune.cost.trainers import trainer_of, trainer_to_json
from autotune.layout import layout_from_mapping
from autotune.named_spaces import load_space
from autotune.options.command_line import command_line

MODEL = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_attention_heads": 32,
    "vocab_size": 32_000,
    "torch_dtype": "bfloat16",
}


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert command_line(main, [*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_layouts_are_ranked_and_the_others_counted(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--space", "llm13b", "--nodes", 8, "--top", 20)
    rows = found["layouts"]
    assert len(rows) == 20
    expected = [row["step_seconds"] / row["fit_probability"] for row in rows]
    assert expected == sorted(expected)
    model = load_space("llm13b").model
    for row in rows:
        assert layout_from_mapping(row["layout"], model).world_size == 64
        assert 0 < row["mfu"] < 1 and 0.01 <= row["fit_probability"] <= 1
        assert 0 < row["peak_memory_gib"] < 90
    assert sum(found["dropped"].values()) > 100
    assert any("predicted to need more than the 79.1 GiB" in reason for reason in found["dropped"])


def test_an_explanation_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    layout = json.dumps({"tensor_parallel": 2, "pipeline_parallel": 4, "micro_batch_size": 1})
    found = planned(capsys, "--space", "llm13b", "--explain", layout)
    assert found["layout"]["data_parallel"] == 8, "what the cluster has left"
    assert sum(found["step_seconds_by_cause"].values()) == pytest.approx(found["step_seconds"])
    assert sum(found["peak_memory_gib_by_cause"].values()) == pytest.approx(
        found["peak_memory_gib"]
    )
    assert found["step_seconds_by_cause"]["pipeline_bubble"] > 0


def test_a_hugging_face_model_on_named_and_on_stated_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(MODEL))
    slow, fast = (
        planned(capsys, "--model", config, "--gpu", gpu)["layouts"][0]["step_seconds"]
        for gpu in ("a100-80gb", "h200")
    )
    assert fast < slow
    stated = ("--peak-tflops", 624, "--memory-gib", 160)
    stated += ("--memory-bandwidth", 4078, "--multiprocessors", 108)
    found = planned(capsys, "--model", config, "--gpu", "mine", *stated)
    assert found["layouts"][0]["step_seconds"] < slow


def test_every_figure_on_the_screen_is_called_predicted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command_line(main, ["--space", "llm65b", "--top", "3"]) == 0
    assert "Predicted, most promising first" in capsys.readouterr().out
    assert command_line(main, ["--space", "tiny", "--explain", "{}"]) == 0
    shown = capsys.readouterr().out
    assert "Predicted seconds per step" in shown and "predicted: " in shown
    assert "MFU -" in shown, "the peak of a CPU is not known"


BAD_INPUT = [
    ((), "--space or --model must be given"),
    (("--space", "llm13b", "--gpu", "abacus"), "for another device give --peak-tflops"),
    (("--space", "llm13b", "--explain", '{"data_parallel": 8}'), "must be the 64 devices"),
    (("--space", "llm13b", "--explain", '{"tensor_parallel": 3}'), "must divide global_batch_size"),
    (("--space", "llm13b", "--explain", '{"zero_stage": 9}'), "--explain: zero_stage"),
    (("--space", "llm13b", "--explain", "no.json"), "--explain: cannot read 'no.json'"),
    (("--space", "llm13b", "--fix", "micro_batch_size=3"), "no layout is left"),
    (("--space", "llm13b", "--peak-tflops", "0"), "--peak-tflops"),
    (("--space", "llm13b", "--top", "0"), "--top"),
    (("--model", "no.json"), "--model: cannot read 'no.json'"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_INPUT, ids=str)
def test_bad_input_is_one_line_and_status_2(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(main, arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    assert sentence in captured.err


def test_other_trainers_and_networks_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    def best(*arguments: object) -> dict[str, Any]:
        found: dict[str, Any] = planned(capsys, "--space", "llm13b", "--top", 1, *arguments)
        return found

    own, megatron = best(), best("--trainer", "megatron")
    assert (own["trainer"], megatron["trainer"]) == ("deepspeed_llm", "megatron")
    assert "trainer megatron has ZeRO stage 0 and 1 only, got 3" in megatron["dropped"]
    row = own["layouts"][0]
    assert row["low_step_seconds"] < row["step_seconds"] < row["high_step_seconds"]
    fixed = ("--fix", "zero_stage=3", "--fix", "tensor_parallel=1", "--fix", "pipeline_parallel=1")
    slow, fast = (
        best(*fixed, "--network-gbit", gbit)["layouts"][0]["step_seconds"] for gbit in (10, 3200)
    )
    assert slow > 2 * fast
    assert best(*fixed, "--network-gbit", 1600)["layouts"] == best(*fixed)["layouts"]


def test_a_trainer_of_a_file_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    megatron = trainer_of("megatron")
    file = tmp_path / "mine.json"
    file.write_text(trainer_to_json(dataclasses.replace(megatron, name="mine")))
    mine = planned(capsys, "--space", "llm13b", "--top", 1, "--trainer", file)
    known = planned(capsys, "--space", "llm13b", "--top", 1, "--trainer", "megatron")
    assert mine["trainer"] == "mine" and mine["layouts"] == known["layouts"]


@pytest.mark.parametrize("trainer", ["megatron", "nemo", "fsdp2", "hagemann2023"])
def test_where_nothing_fits_a_trainer_it_says_so(
    capsys: pytest.CaptureFixture[str], trainer: str
) -> None:
    options = ("--space", "llm65b", "--nodes", 1, "--trainer", trainer)
    found = planned(capsys, *options)
    assert found["layouts"] == [] and "needs at least" in found["nothing_fits"]


def test_a_trainer_without_any_layout_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--space",
        "llm13b",
        "--trainer",
        "megatron",
        "--fix",
        "zero_stage=3",
        "--fix",
        "pipeline_parallel=1",
    ]
    assert command_line(main, arguments) == 2
    assert capsys.readouterr().err == (
        "error: llm13b has no layout that trainer megatron supports: trainer megatron has ZeRO "
        "stage 0 and 1 only, got 3\n"
    )
