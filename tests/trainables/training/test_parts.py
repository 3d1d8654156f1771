"""The parts of a training that need no ranks: schedule, groups, plan, checkpoints, metrics."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.cluster import Cluster
from autotune.errors import InputError
from autotune.hardware import device_named
from autotune.layout import Layout
from autotune.model import Model
from autotune.trial.trial import TrialSpec
from tests.trainables.reference import plain_decoder
from tests.trainables.small_models import small_model as architecture
from trainables.deepspeed_llm.optimizer import adamw
from trainables.deepspeed_llm.training import checkpoints
from trainables.deepspeed_llm.training.metrics import metrics_file
from trainables.deepspeed_llm.training.plan import Plan, opened
from trainables.deepspeed_llm.training.schedule import Schedule

SCHEDULE = Schedule(peak=1.0, minimum=0.1, warmup_steps=4, steps=10)


def test_the_learning_rate_rises_and_falls_as_a_cosine() -> None:
    rates = [SCHEDULE.learning_rate(step) for step in range(10)]
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(7)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, *cosine])
    assert rates[3] == 1.0 and rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("warmup", "steps", "rates"),
    [(0, 1, [1.0]), (0, 3, [1.0, 0.55, 0.1]), (1, 3, [1.0, 0.55, 0.1]), (3, 3, [1 / 3, 2 / 3, 1])],
)
def test_short_schedules_are_whole(warmup: int, steps: int, rates: list[float]) -> None:
    schedule = dataclasses.replace(SCHEDULE, warmup_steps=warmup, steps=steps)
    assert [schedule.learning_rate(step) for step in range(steps)] == pytest.approx(rates)


@pytest.mark.parametrize("name", ["gpt2", "deepseek_v3", "gemma3", "olmo2"])
def test_matrices_are_decayed_and_vectors_are_not(name: str) -> None:
    network = plain_decoder(architecture(name))
    matrices, vectors = adamw(network, 0.3).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert all(p.dim() > 1 for p in matrices["params"])
    assert all(p.dim() == 1 for p in vectors["params"])
    parameters = [*matrices["params"], *vectors["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in network.parameters()}
    assert any(p is network.embedding.weight for p in matrices["params"])


def test_weight_decay_shrinks_what_has_no_gradient() -> None:
    network = plain_decoder(architecture("gpt2"))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = adamw(network, 0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        factor = 1 - 3e-4 * 0.5 if parameter.dim() > 1 else 1.0
        assert torch.allclose(parameter, before[name] * factor), name


@pytest.fixture
def spec(small_model: Model) -> TrialSpec:
    return TrialSpec(
        trial_id="0",
        layout=Layout(tensor_parallel=2, micro_batch_size=8),
        model=small_model,
        cluster=Cluster(nodes=1, gpus_per_node=2, device=device_named("cpu")),
        precision="fp32",
        warmup_steps=0,
        measured_steps=10,
        log_dir=None,
    )


def saved(directory: Path, step: int, spec: TrialSpec, keep: int | None = None) -> None:
    checkpoints.begin(directory, step)
    (directory / checkpoints.tag_of(step) / "weights").write_bytes(b"1234")
    checkpoints.flush(directory, step)
    checkpoints.complete(directory, step, spec, keep=keep)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_checkpoint_counts_once_it_is_complete(tmp_path: Path, spec: TrialSpec) -> None:
    directory = tmp_path / "new" / "checkpoints"
    assert checkpoints.latest(directory) is None
    saved(directory, 5, spec)
    checkpoints.begin(directory, 10)
    (directory / "global_step10" / "weights").write_bytes(b"12")
    assert checkpoints.latest(directory) == 5, "the second was interrupted"
    checkpoints.refuse_other(directory, 5, spec)
    saved(directory, 8, spec)
    assert names(directory) == ["global_step5", "global_step8", "latest"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, spec: TrialSpec) -> None:
    (tmp_path / "global_step_of_mine").mkdir()
    for step in (2, 9, 10, 11):
        saved(tmp_path, step, spec, keep=2)
    assert names(tmp_path) == ["global_step10", "global_step11", "global_step_of_mine", "latest"]


def test_a_folder_that_a_link_leads_to_is_not_deleted(tmp_path: Path, spec: TrialSpec) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    directory = tmp_path / "checkpoints"
    saved(directory, 1, spec)
    (directory / "global_step0").symlink_to(precious)
    with pytest.raises(OSError):
        saved(directory, 2, spec, keep=1)
    assert (precious / "file").exists() and checkpoints.latest(directory) == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 1}, "must be a checkpoint of the same training: seed is 1, and 0 in "),
        ({"precision": "bf16"}, "the same training: precision is 'bf16', and 'fp32' in "),
        (
            {"layout": Layout(data_parallel=2)},
            "the same layout: tensor_parallel is 1, and 2 in ",
        ),
        (
            {"model": architecture("gpt2")},
            "the same model: ",
        ),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_training_is_refused(
    change: dict[str, Any], sentence: str, tmp_path: Path, spec: TrialSpec
) -> None:
    saved(tmp_path, 3, spec)
    checkpoints.refuse_other(tmp_path, 3, spec)
    with pytest.raises(InputError, match=sentence):
        checkpoints.refuse_other(tmp_path, 3, dataclasses.replace(spec, **change))


def test_the_kernels_of_a_layout_may_change(tmp_path: Path, spec: TrialSpec) -> None:
    saved(tmp_path, 3, spec)
    layout = dataclasses.replace(spec.layout, attention_kernel="math", micro_batch_size=4)
    checkpoints.refuse_other(tmp_path, 3, dataclasses.replace(spec, layout=layout))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("latest", "global_step4", "latest' must name a checkpoint, got 'global_step4'"),
        ("latest", "../elsewhere", "must name a checkpoint, got '../elsewhere'"),
        ("latest", "", "must name a checkpoint, got ''"),
        ("global_step3/weights", "123", "weights' must have 4 bytes, got 3"),
        ("global_step3/weights", None, "weights' must have 4 bytes, got none"),
        ("global_step3/training.json", None, "cannot read .*training.json"),
        ("global_step3/training.json", "{", "training.json': not valid JSON"),
        ("global_step3/training.json", "{}", "the same model: "),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(
    file: str, content: str | None, sentence: str, tmp_path: Path, spec: TrialSpec
) -> None:
    saved(tmp_path, 3, spec)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    plan = Plan(schedule=SCHEDULE, weight_decay=0.1, resume_from=tmp_path)
    with pytest.raises(InputError, match=f"^resume_from:? .*{sentence}"):
        opened(plan, spec)


def test_metrics_go_on_after_a_resume(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with metrics_file(file, 0) as write:
        for step in range(5):
            write({"step": step, "loss": 1.0})
            assert len(file.read_text().splitlines()) == step + 1
    with file.open("a") as cut_off:
        cut_off.write('{"step": 5, "lo')
    with metrics_file(file, 3) as write:
        for step in (3, 4):
            write({"step": step, "loss": 2.0})
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["loss"] for line in lines] == [1.0, 1.0, 1.0, 2.0, 2.0]
    with metrics_file(file, 9):
        pass
    assert len(file.read_text().splitlines()) == 5
