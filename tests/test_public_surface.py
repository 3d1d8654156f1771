"""`import autotune`: what it offers, and what that costs."""

import ast
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import autotune
from autotune.options.search_options import SearchOptions, request_from_options
from autotune.trial import registry
from tests.autotune.simulate import new_store, run_to_the_end
from tests.conftest import REPOSITORY
from trainables.fake import DESCRIPTION as FAKE

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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"speed": 9}, "^unknown option speed: tune has "),
        ({"address": "10.0.0.1:6379"}, r"^address belongs to the place: tune\(\.\.\., place=Place"),
        ({"max_trials": 0}, "^max_trials must be greater than or equal to 1, got 0"),
        ({"nodes": "2"}, "^nodes must be a valid integer, got '2'"),
        ({"sequence_length": -1}, "^sequence_length must be greater than or equal to 1, got -1"),
        ({"precision": "fp8"}, "^precision must be 'fp32' or 'bf16', got 'fp8'"),
        ({"seed": 2**63}, "^seed must be less than"),
        ({"trainable": "magic"}, "^trainable must be one of (auto|command), "),
        ({"model": {"hidden_size": 3}}, "^--model: num_hidden_layers"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(autotune.InputError, match=sentence):
        autotune.tune("tiny", **options)


def test_what_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(autotune.InputError, match=r"^no run in "):
        autotune.load(tmp_path)
    store = new_store(tmp_path / "run", trainable="simulated", max_trials=2)
    run_to_the_end(store)
    run = autotune.load(tmp_path / "run")
    for content in ("[]", "{}", '{"layout": 3}', '{"layout": {"tensor_parallel": "x"}}', "{"):
        (run.directory / "best.json").write_text(content)
        with pytest.raises(autotune.InputError, match=r"best\.json"):
            assert run.best_layout
    table = pa.table({"trial_id": ["0001"], "step_seconds": ["fast"]})
    for foreign in (table, pa.table({"a": [1]})):
        pq.write_table(foreign, run.directory / "trials" / "0001.parquet")
        with pytest.raises(autotune.InputError, match=r"0001\.parquet.* cannot be read"):
            assert autotune.load(run.directory).trials


def test_spaces_models_and_devices_may_be_given_as_objects_or_paths() -> None:
    space = options_of(space=Path("examples/my_space.py"), gpu=autotune.device("h200"))
    assert space.name == "my_space" and space.cluster.device.name == "h200"
    fields = json.loads((REPOSITORY / "examples" / "model.json").read_text())
    for model in (fields, REPOSITORY / "examples" / "model.json"):
        assert options_of(model=model).model.hidden_size == fields["hidden_size"]
    assert autotune.plan("llm13b").ranked == autotune.plan(autotune.load_space("llm13b")).ranked


def options_of(**options: Any) -> autotune.SearchSpace:
    return request_from_options(SearchOptions(trainable="simulated", **options)).space


def test_a_run_of_a_trainable_that_is_not_installed_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = dataclasses.replace(FAKE, name="theirs")
    monkeypatch.setitem(registry._registered, "theirs", theirs)
    run_to_the_end(new_store(tmp_path, trainable="theirs", max_trials=2))
    monkeypatch.delitem(registry._registered, "theirs")
    run = autotune.load(tmp_path)
    assert run.request.trainable == "theirs" and run.best is not None
    with pytest.raises(autotune.InputError, match=r"^trainable must be one of|^resume: "):
        autotune.resume(tmp_path)


def test_the_module_of_the_command_may_be_imported_beside_the_function() -> None:
    code = (
        "import autotune, autotune.plan; from autotune.plan import main; "
        "print(len(autotune.plan('llm13b').ranked) > 100)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=REPOSITORY
    )
    assert process.stdout.strip() == "True", process.stderr


def test_the_example_files_use_it_alone() -> None:
    for file in sorted((REPOSITORY / "examples").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("autotune"):
                # The second is for training scripts.
                assert node.module in ("autotune", "autotune.report"), file
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
