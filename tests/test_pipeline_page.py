"""docs/pipeline.md: its commands run as they stand there, its figures are those of the code."""

import re
import shlex
from pathlib import Path

import pytest

from autotune.__main__ import autotune
from autotune.cost.model import CostModel
from autotune.layout import layout_from_mapping
from autotune.named_spaces import load_space
from autotune.options.command_line import command_line
from tests.autotune.pipeline.schedules import equal_stages
from tests.autotune.simulate import new_store, run_to_the_end
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "pipeline.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_to_the_end(new_store(tmp_path / "runs" / "llm13b"), trials=6)
    for program, *words in COMMANDS:
        assert program == "autotune"
        more = ["--dry-run"] if words[0] == "run" else []
        assert command_line(autotune, [*words, *more]) == 0, words
    assert {file.name for file in tmp_path.glob("*.*")} == {"step.svg", "step.html", "trial3.json"}


def test_the_figures_are_those_of_the_code() -> None:
    assert equal_stages(4, 8).bubble_share == pytest.approx(3 / 11)
    assert f"{equal_stages(4, 128).bubble_share:.0%}" == "2%"
    space = load_space("llm13b")
    model = CostModel(space.model, space.precision, space.cluster)
    for tensor, pipeline, named in ((4, 1, "tp4"), (2, 2, "tp2 pp2"), (1, 4, "pp4")):
        values = {
            "tensor_parallel": tensor,
            "pipeline_parallel": pipeline,
            "data_parallel": 16,
        }
        layout = layout_from_mapping(values, space.model)
        assert layout.gradient_accumulation_steps == 128
        seconds = float(model.estimate([layout]).step_seconds[0])
        assert f"{seconds:.1f} s with {named}" in PAGE.replace("\n", " ")


def test_the_picture_is_that_of_the_code() -> None:
    picture = (REPOSITORY / "docs" / "images" / "pipeline.svg").read_text("utf-8")
    share = re.search(r"predicted: (\d+) % bubble", picture)
    assert share is not None and f"has {share[1]} %" in PAGE
    assert "4 stages, 8 micro-batches" in picture


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (REPOSITORY / "docs" / target).exists(), target
