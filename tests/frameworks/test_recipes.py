"""The examples of commands for Megatron-LM, Megatron-Bridge and nanotron: names of arguments."""

from pathlib import Path

import pytest
import yaml

from autotune.export import export_layout
from autotune.layout import Layout
from autotune.options.search_options import SearchOptions, request_from_options
from autotune.request import Request
from tests.conftest import REPOSITORY
from tests.frameworks import FRAMEWORKS, needs_frameworks, read, started

EXAMPLES = REPOSITORY / "examples"


def request(file: str, model: str = "llama-3.1-8b") -> Request:
    return request_from_options(
        SearchOptions(
            model=REPOSITORY / "tests/autotune/models/configs" / f"{model}.json",
            nodes=1,
            trainable="command",
            command=EXAMPLES / file,
            global_batch_size=64,
        )
    )


def layouts(of: Request) -> list[Layout]:
    """Some layouts, which together have every value of every dimension that the command knows."""
    names = of.description.dimensions
    left = {(name, getattr(layout, name)) for layout in of.all_layouts() for name in names}
    chosen = []
    for layout in of.all_layouts():
        new = left & {(name, getattr(layout, name)) for name in names}
        if new:
            chosen.append(layout)
            left -= new
    return chosen


def launched(folder: Path, of: Request, program: str) -> list[tuple[Layout, list[str]]]:
    """Layouts, and the arguments with which the exported command starts the program for each."""
    found = []
    for index, layout in enumerate(layouts(of)):
        export_layout(folder / str(index), layout, of, "command")
        arguments, _ = started(folder / str(index), "torchrun", LOGS=str(folder))
        found.append((layout, arguments[arguments.index(program) + 1 :]))
    return found


@needs_frameworks()
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_megatron_lm_reads_the_arguments_of_its_example(tmp_path: Path) -> None:
    cases = launched(tmp_path, request("megatron/megatron_lm.toml"), "pretrain_gpt.py")
    environment = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    jobs = [
        {"arguments": arguments, "world_size": 8, "environment": environment}
        for _, arguments in cases
    ]
    for (layout, _), found in zip(cases, read("read_megatron_lm", jobs, FRAMEWORKS), strict=True):
        recompute = layout.activation_checkpointing
        wanted = {
            "tensor_model_parallel_size": layout.tensor_parallel,
            "pipeline_model_parallel_size": layout.pipeline_parallel,
            "data_parallel_size": layout.data_parallel,
            "sequence_parallel": layout.sequence_parallel,
            "micro_batch_size": layout.micro_batch_size,
            "global_batch_size": 64,
            "recompute_granularity": None if recompute == "none" else recompute,
            "use_distributed_optimizer": layout.zero_stage > 0,
            "train_iters": 20,
            "log_interval": 1,
        }
        assert {name: found[name] for name in wanted} == wanted, layout.describe()


@needs_frameworks()
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_megatron_bridge_has_the_fields_of_its_example(tmp_path: Path) -> None:
    of = request("megatron/megatron_bridge.toml")
    cases = launched(tmp_path, of, "scripts/training/run_recipe.py")
    jobs = [{"overrides": arguments[2:]} for _, arguments in cases]
    found = read("read_megatron_bridge", jobs, FRAMEWORKS)
    for (layout, _), values in zip(cases, found, strict=True):
        wanted = {
            "model.tensor_model_parallel_size": layout.tensor_parallel,
            "model.pipeline_model_parallel_size": layout.pipeline_parallel,
            "model.sequence_parallel": layout.sequence_parallel,
            "train.micro_batch_size": layout.micro_batch_size,
            "ddp.use_distributed_optimizer": layout.zero_stage > 0,
        }
        assert {name: values[name] for name in wanted} == wanted, layout.describe()


def test_the_file_of_nanotron_has_the_names_of_the_export(tmp_path: Path) -> None:
    of = request("nanotron/command.toml", model="llama-2-7b")
    for layout in layouts(of):
        out = tmp_path / layout.describe().replace(" ", "-")
        exported = export_layout(out, layout, of, "nanotron").files["config.yaml"]
        text = (EXAMPLES / "nanotron" / "config.yaml").read_text("utf-8")
        assert of.command is not None and of.command["files"] == {"config.yaml": text}
        export_layout(out, layout, of, "command")
        script = (out / "launch.sh").read_text("utf-8")
        written = script.partition("printf %s '")[2].partition("' >")[0]
        mine, theirs = yaml.safe_load(written), yaml.safe_load(exported)
        assert mine.keys() == theirs.keys()
        for section, values in mine.items():
            if isinstance(values, dict):
                assert values.keys() <= theirs[section].keys(), section
        for section in ("parallelism", "tokens"):
            same = mine[section].keys() & theirs[section].keys() - {"train_steps"}
            assert {n: mine[section][n] for n in same} == {n: theirs[section][n] for n in same}
