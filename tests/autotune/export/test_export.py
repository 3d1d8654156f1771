"""Exports: by format, of any trial that worked; a folder lists the formats."""

import json
import os
from pathlib import Path

import pytest

import autotune.__main__
from autotune import export
from autotune.errors import InputError
from autotune.options.command_line import command_line
from autotune.store.results import load
from tests.autotune.simulate import fake_request, new_store, run_to_the_end


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


def test_a_format_is_a_module_with_one_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "formats"
    folder.mkdir()
    (folder / "my_framework.py").write_text(
        "def write(directory, layout, request):\n"
        "    (directory / 'mine.txt').write_text(layout.describe())\n"
    )
    monkeypatch.setattr(export, "__path__", [*export.__path__, str(folder)])
    assert export.formats() == ["deepspeed", "my-framework"]
    request = fake_request()
    layout = request.space.layouts()[0]
    export.export_layout(tmp_path / "out", layout, request, "my-framework")
    assert (tmp_path / "out" / "mine.txt").read_text() == layout.describe()
    with pytest.raises(InputError, match="format must be one of deepspeed, my-framework, got"):
        export.export_layout(tmp_path / "out", layout, request, "nemo")
