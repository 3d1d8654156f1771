"""Guided search where other code trains than the cost model describes."""

import json
from pathlib import Path

import pytest

from autotune.options.command_line import command_line
from benchmarks.foreign_trainer import WORLDS, case, main, searches


def test_perfect_overlap_is_found_out_in_four_trials() -> None:
    found = searches(case("llm13b", 8), WORLDS[0], "deepspeed_llm", 3, chance=False)
    assert max(one.trials for one in found) <= 4


@pytest.mark.slow
def test_most_searches_in_other_worlds_take_four_trials() -> None:
    for world in WORLDS:
        for name, nodes in (("llm13b", 2), ("llm30b", 8), ("llm30b", 32)):
            found = searches(case(name, nodes), world, "deepspeed_llm", 10, chance=False)
            trials = sorted(one.trials for one in found)
            assert trials[5] <= 4 and trials[-1] <= 6, (world, name, nodes, trials)


def test_the_figures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    options = ["--world", "nemo", "--case", "llm13b@8", "--seeds", "1", "--json", str(out)]
    assert command_line(main, options) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["world"], row["nodes"]) == ("nemo", 8) and len(row["stated_trials"]) == 1
    assert "Simulated" in capsys.readouterr().out
