"""Reading the TOML file of a training command: each field, and what is wrong with it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from autotune.cost.trainers import trainer_content, trainer_of, trainer_to_json
from autotune.errors import InputError
from autotune.layout import Layout
from autotune.ledger.search_setup import cost_model_of
from autotune.options.search_options import SearchOptions, request_from_options
from autotune.store.run_directory import create_run, open_run
from tests.trainables.command.conftest import CommandContract
from tests.trainables.command.recipes import recipe
from trainables.command.figures import BadReport, Lines, line_reader, reported, step_seconds
from trainables.command.placeholders import placeholder_values
from trainables.command.recipe import recipe_of
from trainables.command.recipe_file import read_recipe

VALUES: dict[str, Any] = {
    "rank": 0,
    "local_rank": 0,
    "node_rank": 0,
    "master_addr": "127.0.0.1",
    "master_port": 29500,
    "scratch_directory": "/tmp/scratch",
}


def arguments(layout: Layout, **changes: Any) -> list[str]:
    spec = dataclasses.replace(CommandContract().spec(), layout=layout)
    return recipe_of(recipe(**changes)).arguments(placeholder_values(spec, VALUES))


def test_placeholders_become_the_values_of_the_layout() -> None:
    layout = Layout(data_parallel=2, activation_checkpointing="full", gradient_accumulation_steps=4)
    argv = ["train", "--tp={tensor_parallel}", "{activation_checkpointing}", "{sequence_parallel}"]
    values = {"activation_checkpointing": {"full": ["--recompute", "full"], "none": []}}
    assert arguments(layout, argv=argv, values=values) == [
        "train",
        "--tp=1",
        "--recompute",
        "full",
        "false",
    ]
    layout = dataclasses.replace(layout, activation_checkpointing="none")
    assert arguments(layout, argv=argv, values=values) == ["train", "--tp=1", "false"]
    assert arguments(layout, argv=["{global_batch_size} of {steps}"]) == ["8 of 3"]


def test_a_mapped_value_may_have_placeholders_and_a_star_is_any_other() -> None:
    values = {
        "pipeline_parallel": {
            "1": ["--local-batch", "{micro_batch_size}"],
            "*": ["--stages", "{pipeline_parallel}", "--local-batch", "{replica_batch_size}"],
        }
    }
    argv = ["{pipeline_parallel}", "of", "{zero_stage}"]
    flat = Layout(data_parallel=2, micro_batch_size=2, gradient_accumulation_steps=2)
    staged = dataclasses.replace(flat, pipeline_parallel=2, data_parallel=1)
    assert arguments(flat, argv=argv, values=values) == ["--local-batch", "2", "of", "1"]
    assert arguments(staged, argv=argv, values=values) == [
        "--stages", "2", "--local-batch", "8", "of", "1",
    ]  # fmt: skip
    varied = recipe_of(recipe(argv=argv, values=values)).varied
    assert varied == ("pipeline_parallel", "zero_stage", "micro_batch_size")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"argv": []}, "argv should have at least 1 item|argv .*, got"),
        ({"argv": "train.py"}, "argv must be a valid tuple, got 'train.py'"),
        ({"argv": [1]}, "argv .*string, got 1"),
        ({"argv": ["{tp}"]}, "argv must have placeholders among tensor_parallel, .*, got 'tp'"),
        ({"argv": ["{"]}, r"argv must have paired braces \(.*\), got '{'"),
        ({"argv": ["{steps:3d}"]}, "argv must have plain placeholders, got '{steps:3d}'"),
        ({"argv": ["{}"]}, "argv must have placeholders among .*, got ''"),
        ({"processes": "gpu"}, "processes must be 'node' or 'rank', got 'gpu'"),
        ({"env": {"A": 1}}, "env.A must be a valid string, got 1"),
        ({"env": {"A": "{b}"}}, "env.A must have placeholders among .*, got 'b'"),
        ({"values": {"tp": {}}}, "values must have placeholders among .*, got 'tp'"),
        (
            {"argv": ["--x={zero_stage}"], "values": {"zero_stage": {"1": ["a"]}}},
            "argv must have {zero_stage} as an argument of its own, .*, got '--x={zero_stage}'",
        ),
        (
            {"argv": ["x"], "dimensions": {"zero_stage": [1]}},
            r"dimensions must be placeholders of the command \(none\), got 'zero_stage'",
        ),
        ({"dimensions": {"zero_stage": [1]}}, "dimensions must be placeholders .*'zero_stage'"),
        (
            {"dimensions": {"micro_batch_size": [0]}},
            "dimensions.micro_batch_size must have values that a layout can have, got 0",
        ),
        ({"figures": {"speed": {"pattern": "(x)"}}}, "figures.*, got 'speed'"),
        (
            {"figures": {"loss": {"pattern": "(x)"}}},
            "figures must have one of step_seconds, tokens_per_second, .*, got loss",
        ),
        ({"figures": {"loss": {"pattern": "x"}}}, "must have a group around the number, got 'x'"),
        ({"figures": {"loss": {"pattern": "(x"}}}, r"must be a regular expression \(.*, got '\(x'"),
        ({"figures": {"loss": {"pattern": "(x)", "scale": 0}}}, "scale must be greater .*, got 0"),
        (
            {"values": {"zero_stage": {"1": ["--stage", "{z}"]}}},
            "values.zero_stage must have placeholders among .*, got 'z'",
        ),
        ({"files": {"../x": "text"}}, r"files.*must match pattern .*, got '../x'"),
        (
            {"files": {"a": "{zero_stage}"}, "values": {"zero_stage": {"1": ["x"]}}},
            "files must have no {zero_stage}, because values.zero_stage has a list",
        ),
        ({"reader": "read"}, "reader must be FILE.py:FUNCTION, got 'read'"),
        ({"reader": "read.py:1"}, "reader must be FILE.py:FUNCTION, got 'read.py:1'"),
        (
            {"reader": "a.py:f", "figures": {"step_seconds": {"pattern": "(x)"}}},
            "figures and reader exclude each other, got both",
        ),
        ({"warmup_steps": -1}, "warmup_steps must be greater .*, got -1"),
        ({"measured_steps": 0}, "measured_steps must be greater .*, got 0"),
        ({"trial_timeout_seconds": 0}, "trial_timeout_seconds must be greater .*, got 0"),
        ({"reporters": 2}, "reporters must be 'one' or 'all', got 2"),
        ({"out_of_memory": {"patterns": ["("]}}, r"must be a regular expression \(.*, got '\('"),
        ({"out_of_memory": {"exit_statuses": [0]}}, "exit_statuses must be greater .*, got 0"),
        ({"comparable_losses": 1}, "comparable_losses must be a valid boolean, got 1"),
        ({"stop_seconds": 31}, "stop_seconds must be less than or equal to 30, got 31"),
        ({"trainer": 1}, "trainer must be a name or FILE.json, got 1"),
        ({"shell": True}, "unknown key shell"),
    ],
)
def test_a_bad_field_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=f"^command: .*{sentence}") as error:
        recipe_of(recipe(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("argv = [", "command: not valid TOML: "),
        ("x = 1", "command: argv is missing"),
        (
            'argv = ["a"]\ndirectory = "nowhere"',
            "command: directory must be a folder, got '.*nowhere",
        ),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_recipe(file)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("command = 1", r"must define a function command\(\), got 1"),
        ("def command(): return 'train.py'", r"command\(\) must return a dictionary, got 'train"),
        ("def command(): return {'argv': {1, 2}}", "TypeError: .*set is not JSON"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def command(): return {'argv': []}", "command: argv must have at least 1 item"),
    ],
)
def test_a_bad_python_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(InputError, match=sentence) as error:
        read_recipe(file)
    assert "\n" not in str(error.value)


def test_a_python_file_with_a_space_and_its_command(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from search_spaces.tiny import space\n"
        "def command():\n"
        "    return {'argv': ('train', '{micro_batch_size}'), 'warmup_steps': 3,\n"
        "            'measured_steps': 7, 'trial_timeout_seconds': 50.0}\n"
    )
    options = SearchOptions(space=file, trainable="command", command=file)
    request = request_from_options(options)
    assert request.command == {**read_recipe(file), "directory": str(tmp_path)}
    assert request.command["argv"] == ["train", "{micro_batch_size}"]
    assert (request.space.warmup_steps, request.space.measured_steps) == (3, 7)
    assert request.trial_timeout_seconds == 50
    given = dataclasses.replace(options, trial_timeout=9.0)
    assert request_from_options(given).trial_timeout_seconds == 9


def test_files_are_read_with_the_recipe_and_placeholders_replaced(tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text('{"stage": {zero_stage}, "log": "{scratch_directory}"}')
    file = write(tmp_path / "mine.toml", "[files]", '"config.json" = "base.json"')
    values = read_recipe(file)
    (tmp_path / "base.json").unlink()
    spec = CommandContract().spec()
    texts = recipe_of(values).texts(placeholder_values(spec, VALUES))
    assert texts == {"config.json": '{"stage": 1, "log": "/tmp/scratch"}'}
    with pytest.raises(InputError, match=r"^command: files.config.json: cannot read '.*base.json'"):
        read_recipe(file)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(('argv = ["train", "{micro_batch_size}", "{zero_stage}"]', *lines)))
    return path


def test_only_what_the_command_knows_is_searched(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.toml", "[dimensions]", "zero_stage = [1, 3]")
    request = request_from_options(SearchOptions(space="tiny", trainable="command", command=file))
    layouts = request.all_layouts()
    assert {layout.zero_stage for layout in layouts} == {1, 3}
    assert len({layout.micro_batch_size for layout in layouts}) > 1
    assert {layout.tensor_parallel for layout in layouts} == {1}
    assert request.command is not None and request.command["directory"] == str(tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"trainable": "command"}, "--command must be given for a trainable that runs a training"),
        ({"trainable": "deepspeed", "command": "x"}, "--command must be given for a trainable"),
        (
            {"trainable": "command", "command": "nowhere.toml"},
            "command: cannot read 'nowhere.toml'",
        ),
    ],
)
def test_the_option_and_the_trainable_go_together(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        request_from_options(SearchOptions(space="tiny", **options))


def test_values_that_the_space_does_not_have(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.toml", "[dimensions]", "micro_batch_size = [16]")
    with pytest.raises(InputError, match="knows micro_batch_size 16 only, the space has 1, 2, 4"):
        request_from_options(SearchOptions(space="tiny", trainable="command", command=file))


def test_an_unknown_trainer(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.toml", 'trainer = "x"')
    with pytest.raises(InputError, match=r"command: trainer must be one of .*, got 'x'"):
        request_from_options(SearchOptions(space="tiny", trainable="command", command=file))


def test_a_trainer_of_a_file(tmp_path: Path) -> None:
    """It is read once: what is stored with the request needs the file no more."""
    trainer = dataclasses.replace(trainer_of("megatron"), name="mine", constants={})
    (tmp_path / "mine.json").write_text(trainer_to_json(trainer))
    file = write(tmp_path / "mine.toml", 'trainer = "mine.json"')
    request = request_from_options(SearchOptions(space="tiny", trainable="command", command=file))
    (tmp_path / "mine.json").unlink()
    create_run(tmp_path / "run", request)
    stored = open_run(tmp_path / "run").request
    assert trainer_of(stored.description.trainer) == trainer
    assert cost_model_of(stored).setting.trainer == trainer


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hides_tensor_parallel": "always"}, "hides_tensor_parallel must be 'never', 'backward'"),
        ({"states": "mine"}, "states must be 'deepspeed', 'recorded', 'megatron'"),
        ({"sharding": {"4": {}}}, "sharding"),
        ({"speed": 1}, "unknown key speed"),
        ({"constants": {"speed": {"value": 1, "kind": "stated", "source": ""}}}, "got 'speed'"),
    ],
)
def test_a_bad_file_of_a_trainer(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    content = trainer_content(dataclasses.replace(trainer_of("megatron"), name="mine"))
    (tmp_path / "mine.json").write_text(json.dumps({**content, **changes}))
    file = write(tmp_path / "mine.toml", 'trainer = "mine.json"')
    with pytest.raises(InputError) as error:
        request_from_options(SearchOptions(space="tiny", trainable="command", command=file))
    assert sentence in str(error.value)


def test_figures_of_a_log() -> None:
    figures = {
        "tokens_per_second_per_device": {"pattern": r"tps: ([\d,]+)"},
        "peak_memory_gib": {"pattern": r"memory: ([\d.]+)MiB", "scale": 1 / 1024},
        "loss": {"pattern": r"loss: (\S+)"},
    }
    read, lines = line_reader(recipe_of(recipe(figures=figures))), Lines()
    assert read is not None
    assert lines.feed(b"memory: 512MiB\rloss: 4.5") == ["memory: 512MiB"]
    assert read("memory: 512MiB") is None
    found = read("loss: 4.5 tps: 2,000")
    assert found == {"peak_memory_gib": 0.5, "loss": 4.5, "tokens_per_second_per_device": 2000}
    assert step_seconds(found, tokens=8000, devices=2) == 2.0
    assert read("no figure") is None
    with pytest.raises(BadReport, match="loss must be a number, got 'n/a'"):
        read("loss: n/a tps: 5")


@pytest.mark.parametrize("line", ["x", "[]", "{}", '{"loss": 1}', '{"step_seconds": "soon"}'])
def test_a_bad_report(line: str) -> None:
    with pytest.raises(BadReport, match="must "):
        reported(line)
