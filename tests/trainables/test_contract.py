"""Every trainable keeps the contract of `autotune.testing`, the public fake included."""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from autotune.calibration.recorded_runs import Sweep, read_sweeps
from autotune.errors import InputError
from autotune.layout import Layout
from autotune.options.search_options import SearchOptions, request_from_options
from autotune.space import SearchSpace
from autotune.testing import TrainableContract
from autotune.trial import registry
from autotune.trial.trainable import TrainableDescription, TrainableSetup
from autotune.trial.trial import TrialSpec
from tests.trainables.command.test_trials import TestCommand
from tests.trainables.recorded_runs import RECORDED_RUNS
from trainables.fake import DESCRIPTION as FAKE


class TestDeepSpeed(TrainableContract):
    description = registry.describe_trainable("deepspeed")

    def failing_spec(self) -> TrialSpec:
        cluster = dataclasses.replace(self.space().cluster, memory_gib=0.03)
        return self.spec(cluster=cluster)


class TestSimulated(TrainableContract):
    description = registry.describe_trainable("simulated")

    def failing_spec(self) -> TrialSpec:
        cluster = dataclasses.replace(self.space().cluster, memory_gib=0.01)
        return self.spec(cluster=cluster)


class TestFake(TrainableContract):
    description = FAKE

    def failing_spec(self) -> TrialSpec:
        layout = Layout(data_parallel=1, micro_batch_size=8)
        return self.spec(layout=layout)


class TestReplay(TrainableContract):
    description = registry.describe_trainable("replay")

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def recorded(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.file = tmp_path_factory.mktemp("recorded") / "runs.csv"
        cls.file.write_text(RECORDED_RUNS)

    file: Path

    @property
    def sweep(self) -> Sweep:
        (sweep,) = read_sweeps(self.file)
        return sweep

    @classmethod
    def setup_of_trainable(cls) -> TrainableSetup:
        request = request_from_options(SearchOptions(trainable="replay", runs=cls.file))
        return request.trainable_setup

    @classmethod
    def space(cls) -> SearchSpace:
        return cls.setup_of_trainable().space

    def working_layout(self) -> Layout:
        return self.sweep.timed[0].layout

    def failing_spec(self) -> TrialSpec:
        ran_out = next(run for run in self.sweep.runs if run.step_seconds is None)
        return self.spec(layout=ran_out.layout)


def test_every_installed_trainable_is_among_the_tests() -> None:
    contracts = (TestDeepSpeed, TestSimulated, TestReplay, TestCommand)
    tested = {contract.description.name for contract in contracts}
    own = {
        entry.name
        for entry in importlib.metadata.entry_points(group=registry.GROUP)
        if entry.value.startswith("trainables.")
    }
    assert own == tested


class _EntryPoint:
    """An entry point of another package."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def load(self) -> Any:
        if isinstance(self._content, Exception):
            raise self._content
        return self._content


def described(name: str, **changes: Any) -> TrainableDescription:
    return dataclasses.replace(FAKE, name=name, **changes)


def test_another_package_registers_a_trainable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the core knows its name: what it does follows from its description."""
    theirs = described("theirs", export_format=None, dimensions=("tensor_parallel", "zero_stage"))
    monkeypatch.setattr(registry, "_entry_points", lambda: {"theirs": _EntryPoint(theirs)})
    assert "theirs" in registry.trainable_names()
    request = request_from_options(SearchOptions(space="tiny", trainable="theirs"))
    assert request.simulated and request.description is theirs
    layouts = request.all_layouts()
    assert {layout.micro_batch_size for layout in layouts} == {1}, "it cannot vary them"
    assert {layout.activation_checkpointing for layout in layouts} == {"none"}
    assert len({layout.tensor_parallel for layout in layouts}) > 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (ModuleNotFoundError("No module named 'x'"), "cannot be loaded: ModuleNotFoundError"),
        (7, "theirs must be a TrainableDescription of that name, got 7"),
        (described("other"), "theirs must be a TrainableDescription of that name"),
    ],
)
def test_a_trainable_that_cannot_be_loaded_is_one_sentence(
    content: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_entry_points", lambda: {"theirs": _EntryPoint(content)})
    with pytest.raises(InputError, match=sentence):
        registry.describe_trainable("theirs")


def test_an_unknown_trainable_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"^trainable must be one of .*deepspeed, .*got 'magic'"):
        registry.describe_trainable("magic")
