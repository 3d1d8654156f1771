"""Runs side by side: fair, refused, or marked."""

import dataclasses
import json
from pathlib import Path

import pytest

from autotune.__main__ import autotune as group
from autotune.errors import InputError
from autotune.named_spaces import load_space
from autotune.options.command_line import command_line
from autotune.report.comparison import compare, plain
from autotune.report.facts import RunFacts
from autotune.space import SearchSpace
from tests.autotune.report.test_page import simulated

SPACE = load_space("llm13b")


def with_cluster(**changes: object) -> SearchSpace:
    return dataclasses.replace(SPACE, cluster=dataclasses.replace(SPACE.cluster, **changes))  # type: ignore[arg-type]


def with_model(**changes: object) -> SearchSpace:
    return dataclasses.replace(SPACE, model=dataclasses.replace(SPACE.model, **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    simulated(folder / "first", max_trials=6)
    simulated(folder / "second", max_trials=8, search="guided")
    return folder


def test_a_fair_comparison(folder: Path) -> None:
    runs = [RunFacts(folder / name) for name in ("first", "second")]
    comparison = compare(runs)
    assert not comparison.differences
    for compared, run in zip(comparison.runs, runs, strict=True):
        best = run.best
        assert best is not None
        assert compared.record == best and compared.word == "simulated"
        assert compared.mfu == pytest.approx(best.measurement.mfu), "by the same formula"
        assert compared.gpu_hours == run.gpu_hours and compared.trials == len(run.records)
    assert comparison.runs[0].beside_first == "first"
    content = plain(comparison)
    assert content["fair"] and [row["run"] for row in content["runs"]] == [
        str(run.directory) for run in runs
    ]


@pytest.mark.parametrize(
    ("space", "difference"),
    [
        (with_cluster(nodes=4), "devices 64 and 32"),
        (with_cluster(nodes=16, gpus_per_node=4), "nodes 8 and 16"),
        (with_cluster(memory_gib=70.0), "memory limit 80 GiB and 70 GiB"),
        (with_model(global_batch_size=1024), "global batch 2048 and 1024"),
        (with_model(sequence_length=4096), "sequence length 2048 and 4096"),
        (with_model(num_hidden_layers=20), "parameters "),
        (load_space("llm30b"), "parameters "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_runs_that_are_not_alike_are_refused_or_marked(
    space: SearchSpace, difference: str, folder: Path, tmp_path: Path
) -> None:
    simulated(tmp_path / "other", space=space, max_trials=2, search="guided")
    runs = [RunFacts(folder / "first"), RunFacts(tmp_path / "other")]
    with pytest.raises(InputError, match="must be alike for a fair comparison") as error:
        compare(runs)
    assert difference in str(error.value)
    marked = compare(runs, anyway=True)
    assert marked.differences and len(marked.runs) == 2
    assert not plain(marked)["fair"]


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = str(folder / "first"), str(folder / "second")
    figure = tmp_path / "comparison.png"
    assert command_line(group, ["compare", first, second, "--json", "--figure", str(figure)]) == 0
    assert json.loads(capsys.readouterr().out)["fair"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert command_line(group, ["compare", first, second]) == 0
    assert "Best layouts, simulated" in capsys.readouterr().out
    for words, sentence in (
        ([first], "error: DIR... must be two runs or more, got 1"),
        ([first, first], f"error: DIR... must not name a run twice, got {first!r} again"),
        ([first, str(tmp_path)], "error: DIR...: no run in "),
        ([first, second, "--figure", "x.gif"], "error: --figure must end in .svg, .png, .html"),
        ([first, second, "--figure", "none/x.svg"], "error: --figure must be in a directory"),
    ):
        assert command_line(group, ["compare", *words]) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith(sentence) and shown.err.count("\n") == 1 and not shown.out
