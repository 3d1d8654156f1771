"""Throughput by number of nodes: predicted, simulated, and by real trials."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.__main__ import autotune as group
from autotune.cost.trainers import trainer_of
from autotune.errors import InputError
from autotune.named_spaces import load_space
from autotune.options.command_line import command_line
from autotune.planning import plan
from autotune.report.facts import RunFacts
from autotune.report.scaling import predicted_point, spaces_on, with_efficiency
from autotune.trial.trial import Outcome
from tests.autotune.test_run import SMALL_SPACE

Capture = pytest.CaptureFixture[str]
TRAINER = trainer_of("deepspeed_llm")


def test_strong_keeps_the_batch_and_weak_the_batch_per_node() -> None:
    space = load_space("llm13b")  # 8 nodes, 2048 sequences
    strong = list(spaces_on(space, "strong", (1, 4, 16)))
    weak = list(spaces_on(space, "weak", (1, 4, 16)))
    assert [on.cluster.nodes for on in strong] == [on.cluster.nodes for on in weak] == [1, 4, 16]
    assert {on.model.global_batch_size for on in strong} == {2048}
    assert [on.model.global_batch_size for on in weak] == [256, 1024, 4096]
    model = dataclasses.replace(space.model, global_batch_size=2044)
    with pytest.raises(InputError, match="weak scaling needs a whole number of sequences"):
        list(spaces_on(dataclasses.replace(space, model=model), "weak", (1,)))


def test_predicted_points_are_those_of_the_plan() -> None:
    space = load_space("llm13b")
    points = [
        predicted_point(on, "strong", TRAINER) for on in spaces_on(space, "strong", (4, 8, 16))
    ]
    best = plan(space)
    assert points[1].layout == best.ranked[0]
    assert points[1].step_seconds == best.rows(1)[0]["step_seconds"]
    assert all(point.word == "predicted" for point in points)
    scaled = with_efficiency(points)
    assert scaled[0].efficiency == 1
    for point in scaled:
        assert point.tokens_per_second is not None and point.interval is not None
        assert point.interval[0] < (point.step_seconds or 0) < point.interval[1]
        per_device = point.tokens_per_second / point.devices
        assert point.efficiency == pytest.approx(
            per_device * scaled[0].devices / (scaled[0].tokens_per_second or 0)
        )


def test_too_few_nodes_have_no_layout_and_say_why() -> None:
    space = load_space("llm65b")
    points = [predicted_point(on, "strong", TRAINER) for on in spaces_on(space, "strong", (1, 16))]
    assert points[0].layout is None and points[0].step_seconds is None
    assert points[0].why_none is not None and "GiB" in points[0].why_none
    scaled = with_efficiency(points)
    assert scaled[0].efficiency is None and scaled[1].efficiency == 1


def test_the_command_predicts_and_draws(tmp_path: Path, capsys: Capture) -> None:
    figure = tmp_path / "scaling.html"
    words = ["scale", "--space", "llm13b", "--nodes", "8,4", "--figure", str(figure)]
    assert command_line(group, [*words, "--json"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [(p["kind"], p["nodes"], p["global_batch_size"]) for p in points] == [
        ("strong", 4, 2048),
        ("strong", 8, 2048),
        ("weak", 4, 1024),
        ("weak", 8, 2048),
    ]
    assert "<html" in figure.read_text()
    assert command_line(group, [*words, "--kind", "weak"]) == 0
    text = capsys.readouterr().out
    assert "weak scaling (the same batch per node), predicted" in text and "strong" not in text


def test_it_searches_on_each_and_goes_on_where_it_was(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "runs"
    words = ["scale", "--space", "llm13b", "--nodes", "4,8", "--max-trials", "2", "--json"]
    words += ["--out", str(out), "--trainable", "simulated"]
    assert command_line(group, words) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert {point["word"] for point in points} == {"simulated"}
    names = {"4-nodes-batch-2048", "8-nodes-batch-2048", "4-nodes-batch-1024"}
    assert {folder.name for folder in out.iterdir()} == names, "the same search runs once"
    best = RunFacts(out / "4-nodes-batch-1024").best
    assert best is not None
    assert points[2]["step_seconds"] == best.measurement.step_seconds
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/trials/*")}
    assert command_line(group, words) == 0
    assert json.loads(capsys.readouterr().out)["points"] == points
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/trials/*")} == before
    assert command_line(group, [*words, "--max-trials", "3"]) == 0, "it may be given more"
    capsys.readouterr()
    assert len(RunFacts(out / "4-nodes-batch-2048").explored) == 3
    (out / "8-nodes-batch-2048").rename(tmp_path / "away")
    (out / "4-nodes-batch-2048").rename(out / "8-nodes-batch-2048")
    assert command_line(group, words) == 2
    assert "must hold no other search than this one, got another" in capsys.readouterr().err


def test_a_number_of_nodes_without_a_layout_is_a_row(tmp_path: Path, capsys: Capture) -> None:
    words = ["scale", "--space", "llm13b", "--nodes", "1,3", "--kind", "strong", "--json"]
    for more in ([], ["--out", str(tmp_path), "--trainable", "simulated", "--max-trials", "1"]):
        assert command_line(group, [*words, *more]) == 0
        one, three = json.loads(capsys.readouterr().out)["points"]
        assert one["layout"] is not None and three["layout"] is None
        assert three["step_seconds"] is None and "no layout is left" in three["why_none"]
    assert command_line(group, ["scale", "--space", "llm13b", "--nodes", "999999999"]) == 2
    assert capsys.readouterr().err.startswith("error: --nodes: weak scaling needs at most ")


def test_real_trials_on_virtual_nodes(tmp_path: Path) -> None:
    space = tmp_path / "small.py"
    space.write_text(SMALL_SPACE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "autotune", "scale", "--space", space, "--nodes", "1,2"),
            *("--kind", "strong", "--max-trials", "1", "--out", tmp_path / "runs"),
            *("--figure", tmp_path / "scaling.svg"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "strong scaling (the same global batch), measured" in done.stdout
    for nodes in (1, 2):
        facts = RunFacts(tmp_path / "runs" / f"{nodes}-nodes-batch-8")
        assert facts.word == "measured" and facts.best is not None
        assert facts.best.outcome is Outcome.OK and facts.best.layout.world_size == nodes
    assert "measured" in (tmp_path / "scaling.svg").read_text()
