"""Runs trials of recipes on one host, and looks for processes that they leave."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.layout import Layout
from autotune.testing import TrainableContract
from autotune.trial import registry
from autotune.trial.trainable import RankHost, TrainableSetup
from autotune.trial.trial import Ended, StepReport, TrialSpec
from tests.trainables.command.recipes import recipe
from tests.trainables.command.script import FAILS_AT
from trainables.command.launch import Command
from trainables.command.recipe import recipe_of


class CommandContract(TrainableContract):
    """The contract of trainables, for a command."""

    description = registry.describe_trainable("command")

    @classmethod
    def setup_of_trainable(cls) -> TrainableSetup:
        return TrainableSetup(space=cls.space(), command=recipe())

    def failing_spec(self) -> TrialSpec:
        return self.spec(layout=Layout(data_parallel=2, micro_batch_size=FAILS_AT))


@pytest.fixture
def spec(tmp_path: Path) -> TrialSpec:
    """A trial of two ranks and three steps."""
    return dataclasses.replace(CommandContract().spec(), log_dir=str(tmp_path / "logs"))


class Trials:
    """Runs trials of recipes; closes their hosts."""

    def __init__(self) -> None:
        self.hosts: list[RankHost] = []

    def command(self, values: dict[str, Any]) -> tuple[Command, RankHost]:
        command = Command(values, recipe_of(values), device_kind="cpu", env={})
        factory = command.host_factory
        assert factory is not None
        self.hosts.append(factory(address="127.0.0.1"))
        return command, self.hosts[-1]

    def run(self, spec: TrialSpec, values: dict[str, Any]) -> tuple[list[StepReport], Ended]:
        command, host = self.command(values)
        *steps, ended = command.run(spec, [host])
        assert isinstance(ended, Ended)
        return [step for step in steps if isinstance(step, StepReport)], ended


@pytest.fixture
def trials() -> Iterator[Trials]:
    """Afterwards no process is left that was not there before."""
    before = set(psutil.pids())
    trials = Trials()
    yield trials
    for host in trials.hosts:
        host.close()
    left = [
        process
        for process in psutil.process_iter()
        if process.pid not in before and "script.py" in " ".join(_arguments(process))
    ]
    assert not left
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def sleepers() -> list[psutil.Process]:
    """The processes that the test script started in sessions of their own."""
    return [
        process for process in psutil.process_iter() if _arguments(process) == ["sleep", "1000"]
    ]
