"""`autotune calibrate` on the runs of a training command whose trainer is a file of the user."""

import dataclasses
import json
from pathlib import Path

import pytest

import autotune.__main__
from autotune.cost.trainers import trainer_of, trainer_to_json
from autotune.options.command_line import command_line
from autotune.options.search_options import SearchOptions, request_from_options
from autotune.store.run_directory import create_run
from tests.autotune.simulate import run_to_the_end
from tests.trainables.command.recipes import FOLDER


def test_constants_of_a_trainer_of_a_file_are_fitted_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = dataclasses.replace(trainer_of("megatron"), name="mine")
    (tmp_path / "mine.json").write_text(trainer_to_json(trainer))
    toml = tmp_path / "mine.toml"
    toml.write_text(
        f"argv = ['train', '{{micro_batch_size}}', '{{zero_stage}}']\ndirectory = '{FOLDER}'\n"
        "trainer = 'mine.json'\n[dimensions]\nzero_stage = [0, 1]\n"
    )
    run = tmp_path / "run"
    options = SearchOptions(
        space="tiny", trainable="command", command=toml, search="random", max_trials=8
    )
    run_to_the_end(create_run(run, request_from_options(options)))
    out = tmp_path / "calibrated.json"
    command = autotune.__main__.autotune
    assert command_line(command, ["calibrate", str(run), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["trainers"]["mine"]
    words = ["plan", "--space", "tiny", "--trainer", str(tmp_path / "mine.json"), "--json"]
    words += ["--explain", "{}"]
    plans = []
    for device in ([], ["--gpu", str(out)]):
        capsys.readouterr()
        assert command_line(command, [*words, *device]) == 0
        plans.append(json.loads(capsys.readouterr().out)["step_seconds"])
    assert plans[0] != pytest.approx(plans[1], rel=0.01)
