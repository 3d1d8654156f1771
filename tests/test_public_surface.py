"""`import autotune`: what it offers, and what that costs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import autotune
from tests.conftest import REPOSITORY

NAMES = ("SearchSpace", "Model", "Cluster", "Layout", "device", "tune", "plan", "load")


def test_every_public_name_is_there() -> None:
    assert set(NAMES) <= set(autotune.__all__)
    for name in autotune.__all__:
        assert getattr(autotune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'speed'"):
        autotune.speed  # noqa: B018


def test_importing_it_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import autotune; "
        "new = {n.partition('.')[0] for n in set(sys.modules) - before}; "
        "assert not new & {'numpy', 'pydantic', 'click', 'rich', 'ray', 'torch'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=REPOSITORY)


def test_a_plan_without_a_command_line() -> None:
    plan = autotune.plan(autotune.load_space("llm13b"))
    rows = plan.rows(top=3)
    assert [row["layout"] for row in rows] == [layout.columns() for layout in plan.ranked[:3]]
    assert 0 < rows[0]["mfu"] < 1 and rows[0]["fit_probability"] > 0.5


def test_a_search_without_a_command_line(tmp_path: Path) -> None:
    """As in a notebook: a space of one's own, simulated, on a real Ray."""
    space = autotune.SearchSpace(
        name="mine",
        model=autotune.Model(
            num_hidden_layers=24,
            hidden_size=2048,
            intermediate_size=5632,
            num_attention_heads=16,
            num_key_value_heads=8,
            vocab_size=32_000,
            sequence_length=4096,
            global_batch_size=256,
        ),
        cluster=autotune.Cluster(nodes=2, gpus_per_node=8, device=autotune.device("h100")),
        tensor_parallel=(1, 2),
        pipeline_parallel=(1, 2),
    )
    place = autotune.Place(dashboard=False)
    run = autotune.tune(
        space, out=tmp_path / "run", place=place, trainable="simulated", max_trials=2, seed=3
    )
    assert run.request.space == space and run.request.seed == 3
    assert run.best is not None and run.best["simulated"]
    assert run.best_layout in space.layouts()
    assert set(run.trials["outcome"].to_pylist()) <= {"ok", "oom", "stopped"}
    assert run.steps.num_rows > 0 and run.pruned.schema.names[-1] == "reason"
    assert autotune.load(tmp_path / "run").trials == run.trials
    again = autotune.resume(tmp_path / "run", place=place)
    assert again.best == run.best, "a finished search is only read"


def test_options_that_do_not_exist_are_one_sentence() -> None:
    with pytest.raises(autotune.InputError, match=r"^unknown option speed: tune has "):
        autotune.tune("tiny", speed=9)
    with pytest.raises(autotune.InputError, match=r"^no run in "):
        autotune.load("nowhere")


def test_the_example_files_use_it_alone() -> None:
    for file in sorted((REPOSITORY / "examples").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module == "autotune", file
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
                assert not any(name.startswith("autotune.") for name in names), file


def test_no_flag_of_a_command_line_is_named_in_the_core() -> None:
    """Errors name the field; commands put their option in its place."""
    elsewhere = {"commands", "options", "export"}  # a launch script has options of its own
    for file in sorted((REPOSITORY / "autotune").rglob("*.py")):
        if elsewhere & set(file.relative_to(REPOSITORY).parts):
            continue
        tree = ast.parse(file.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                flag = "--" in node.value and id(node) not in docstrings
                allowed = "ray start --" in node.value
                assert not flag or allowed, f"{os.fspath(file)}: {node.value!r}"
