"""Exports: by format, of any trial that worked; a folder lists the formats."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import pytest

import autotune.__main__
from autotune import export
from autotune.cluster import Cluster
from autotune.commands.plan import main as plan_command
from autotune.errors import InputError
from autotune.hardware import device_named
from autotune.models import architectures, load_model
from autotune.options.command_line import command_line
from autotune.space import SearchSpace
from autotune.store.results import load
from autotune.trial.registry import register
from tests.autotune.simulate import fake_request, new_store, run_to_the_end
from trainables.fake import DESCRIPTION as FAKE


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    run_to_the_end(new_store(directory, trainable="simulated", max_trials=6))
    return directory


def exported(*arguments: object) -> int:
    command = autotune.__main__.autotune
    return command_line(command, ["export", *map(str, arguments)])


def test_the_best_layout_is_exported_by_default(run: Path) -> None:
    assert exported(run) == 0
    layout = json.loads((run / "export" / "layout.json").read_text())
    best = load(run).best
    assert best is not None and layout == best["layout"]
    script = run / "export" / "launch.sh"
    assert os.access(script, os.X_OK) and "trainables.deepspeed_llm" in script.read_text()


def test_any_trial_that_worked_can_be_exported(run: Path, tmp_path: Path) -> None:
    trials = load(run).trials.to_pylist()
    other = next(row for row in trials if row["outcome"] == "ok" and row["purpose"] != "confirm")
    out = tmp_path / "new" / "folder"
    assert exported(run, "--trial", other["trial_id"], "--format", "deepspeed", "--out", out) == 0
    layout = json.loads((out / "layout.json").read_text())
    assert layout == {name: other[name] for name in layout}
    config = json.loads((out / "deepspeed.json").read_text())
    assert config["zero_optimization"]["stage"] == other["zero_stage"]


def test_what_cannot_be_exported_is_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for arguments, sentence in (
        ((tmp_path,), "DIR: no run in"),
        ((run, "--format", "nemo"), "Invalid value for '--format'"),
        ((run, "--trial", "9999"), "--trial must be a trial that worked (0001"),
        ((run, "--out", file), "--out must be a folder, got the file"),
    ):
        assert exported(*arguments) == 2
        errors = capsys.readouterr().err
        assert errors.startswith(f"error: {sentence}"), errors
        assert errors.count("\n") == 1


def test_a_format_is_a_module_that_declares_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "formats"
    folder.mkdir()
    (folder / "my_framework.py").write_text(
        "from autotune.export import Export, Format\n"
        "def export(layout, request):\n"
        "    return Export(files={'mine.sh': layout.describe()}, notes=('It is mine.',))\n"
        "FORMAT = Format(checked_against='mine 1.0', export=export)\n"
    )
    monkeypatch.setattr(export, "__path__", [*export.__path__, str(folder)])
    assert "my-framework" in export.formats()
    request = fake_request()
    layout = request.space.layouts()[0]
    made = export.export_layout(tmp_path / "out", layout, request, "my-framework")
    assert made.notes == ("It is mine.",)
    script = tmp_path / "out" / "mine.sh"
    assert script.read_text() == layout.describe() and os.access(script, os.X_OK)
    with pytest.raises(InputError, match=r"format must be one of accelerate, command, .*, got"):
        export.export_layout(tmp_path / "out", layout, request, "nemo")


FOREIGN = [name for name in export.formats() if not export.format_named(name).starts_trainable]


def test_the_formats() -> None:
    assert FOREIGN == [
        "accelerate", "hf-trainer", "megatron-bridge", "megatron-lm", "nanotron", "torchtitan",
    ]  # fmt: skip
    for name in FOREIGN:
        assert any(digit.isdigit() for digit in export.format_named(name).checked_against)


@pytest.mark.parametrize("form", FOREIGN)
def test_notes_are_in_the_files_and_on_the_screen(
    form: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layouts = load(run).trials.to_pylist()
    request, wrote = load(run).request, 0
    for index, row in enumerate(row for row in layouts if row["outcome"] == "ok"):
        out = tmp_path / str(index)
        status = exported(run, "--trial", row["trial_id"], "--format", form, "--out", out)
        errors = capsys.readouterr().err
        if status == 2:
            assert errors.startswith("error: ") and errors.count("\n") == 1
            assert not out.exists(), "nothing is written"
            continue
        wrote += 1
        layout = load(run).layout_of(row["trial_id"])
        made = export.format_named(form).export(layout, request)
        checked = export.format_named(form).checked_against
        assert f"for {checked}\n" in errors
        texts = {file.name: file.read_text() for file in out.iterdir()}
        assert texts == dict(made.files) and os.access(out / "launch.sh", os.X_OK)
        for text in (text for name, text in texts.items() if not name.endswith(".json")):
            comment = " ".join(line.removeprefix("#").strip() for line in text.splitlines())
            assert checked in comment
            for note in made.notes:
                assert f"- {note}" in comment and f"note: {note}\n" in errors
        for name, text in texts.items():
            if name.endswith(".py"):
                compile(text, name, "exec")
    assert wrote


CONFIGS = Path(__file__).parent.parent / "models" / "configs"


def test_an_architecture_that_is_not_expressed_is_one_sentence() -> None:
    expressed: dict[str, set[str]] = {name: set() for name in FOREIGN}
    cluster = Cluster(nodes=2, gpus_per_node=8, device=device_named("h100"))
    for config in sorted(CONFIGS.glob("*.json")):
        model = load_model(str(config), sequence_length=512, global_batch_size=64)
        space = SearchSpace(
            name="x",
            model=model,
            cluster=cluster,
            micro_batch_size=(1,),
            attention_kernel=("math",),
            rmsnorm_kernel=("fused",),
        )
        request = fake_request(space=space)
        for form, layout in itertools.product(FOREIGN, space.layouts()[::7]):
            try:
                script = export.format_named(form).export(layout, request).files["launch.sh"]
            except InputError as error:
                assert "\n" not in str(error)
            else:
                expressed[form].add(model.architecture)
                assert "NODE_RANK" in script and "MASTER_ADDR" in script
    everything = set(architectures())
    assert expressed["accelerate"] == expressed["hf-trainer"] == everything
    assert everything - expressed["megatron-lm"] == {"gemma2", "gemma3", "gpt_neox", "olmo2"}
    latent = {"deepseek_v2", "deepseek_v3"}
    assert expressed["megatron-lm"] - expressed["megatron-bridge"] == latent
    plain = {"llama", "mistral", "phi3"}
    assert expressed["torchtitan"] == plain | {"qwen3", "qwen3_moe", "mixtral"}
    assert expressed["nanotron"] == plain | {"qwen2"}


def test_the_files_are_those_of_the_own_training_code_by_default(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exported(run, "--format", "command") == 2
    assert capsys.readouterr().err.startswith(
        "error: format command does not start the training code of simulated trials; formats for "
        "them: accelerate, deepspeed,"
    )
    request = dataclasses.replace(fake_request(), trainable="no-code")
    register(dataclasses.replace(FAKE, name="no-code", export_format=None))
    with pytest.raises(InputError, match="format must be given, because no format starts"):
        export.default_format(request)
    with pytest.raises(InputError, match="format deepspeed does not start"):
        export.export_layout(tmp_path, request.space.layouts()[0], request, "deepspeed")


def test_a_planned_layout_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def planned(*arguments: str) -> int:
        return command_line(plan_command, ["--space", "llm13b", *arguments])

    out = tmp_path / "out"
    explained = ["--explain", '{"tensor_parallel": 2, "pipeline_parallel": 2}']
    assert planned(*explained, "--export", "megatron-lm", "--out", str(out), "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["layout"]["tensor_parallel"] == 2
    assert "for Megatron-LM of megatron-core" in captured.err
    assert "--tensor-model-parallel-size 2" in (out / "launch.sh").read_text()
    for arguments, sentence in (
        (["--export", "megatron-lm"], "error: --export must be given with --explain, got none"),
        ([*explained, "--out", "x"], "error: --out must be given with --export, got none"),
        (
            [*explained, "--export", "accelerate", "--out", str(tmp_path / "none")],
            "error: accelerate has no pipeline parallelism: pipeline_parallel must be 1, got 2",
        ),
    ):
        assert planned(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.err == f"{sentence}\n" and captured.out == ""
    assert not (tmp_path / "none").exists()


def test_the_worker_does_not_train_what_other_trainers_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = json.dumps({"pipeline_parallel": 2, "zero_stage": 3})
    words = ["--space", "tiny", "--trainer", "fsdp2", "--explain", layout, "--export", "deepspeed"]
    assert command_line(plan_command, [*words, "--out", str(tmp_path / "out")]) == 2
    assert "the DeepSpeed worker cannot train the layout: pipel" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
