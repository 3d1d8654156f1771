"""Trials of a training command: figures, outcomes, and no process left."""

import dataclasses
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.errors import NodeCheckFailed
from autotune.layout import Layout
from autotune.testing import TrainableContract
from autotune.trial import registry
from autotune.trial.trainable import RankHost, TrainableSetup
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from tests.trainables.command.recipes import recipe
from tests.trainables.command.script import FAILS_AT
from trainables.command.launch import Command
from trainables.command.recipe import recipe_of

FROM_LOG = {
    "step_seconds": {"pattern": r"elapsed ms: ([\d.]+)", "scale": 0.001},
    "loss": {"pattern": r"loss: (\S+)"},
}


class TestCommand(TrainableContract):
    description = registry.describe_trainable("command")

    @classmethod
    def setup_of_trainable(cls) -> TrainableSetup:
        return TrainableSetup(space=cls.space(), command=recipe())

    def failing_spec(self) -> TrialSpec:
        return self.spec(layout=Layout(data_parallel=2, micro_batch_size=FAILS_AT))


@pytest.fixture
def spec(tmp_path: Path) -> TrialSpec:
    return dataclasses.replace(TestCommand().spec(), log_dir=str(tmp_path / "logs"))


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


@pytest.mark.parametrize("figures", [{}, FROM_LOG], ids=["reported", "from the log"])
def test_figures_are_read(trials: Trials, spec: TrialSpec, figures: dict[str, Any]) -> None:
    steps, ended = trials.run(spec, recipe(figures=figures))
    assert ended == Ended(outcome=Outcome.OK, reason="")
    assert [step.step_seconds for step in steps] == pytest.approx([0.02] * 3)
    assert [step.loss for step in steps] == pytest.approx([5.0, 4.9, 4.8])
    assert [step.peak_memory_gib for step in steps] == [None if figures else 0.5] * 3
    assert spec.log_dir is not None
    assert "rank 1: trains" in (Path(spec.log_dir) / "rank-1.log").read_text()


@pytest.mark.parametrize(("reporters", "ranks"), [("one", 1), ("all", 2)])
def test_each_step_counts_once_where_all_ranks_report(
    trials: Trials, spec: TrialSpec, reporters: str, ranks: int
) -> None:
    steps, ended = trials.run(spec, recipe("all report", reporters=reporters))
    assert ended.outcome is Outcome.OK, ended
    assert [step.step for step in steps] == [0, 1, 2]
    assert [len(step.ranks) for step in steps] == [ranks] * 3


def test_one_process_per_node_starts_its_own_ranks(trials: Trials, spec: TrialSpec) -> None:
    launcher = ["-m", "torch.distributed.run", "--nnodes", "{nodes}"]
    launcher += ["--nproc-per-node", "{devices_per_node}", "--node-rank", "{node_rank}"]
    launcher += ["--master-addr", "{master_addr}", "--master-port", "{master_port}"]
    values = recipe(processes="node", figures=FROM_LOG)
    values["argv"] = [sys.executable, *launcher, "script.py", "trains", "{micro_batch_size}"]
    steps, ended = trials.run(spec, values)
    assert ended.outcome is Outcome.OK, ended
    assert len(steps) == spec.steps


@pytest.mark.parametrize(
    ("behaviour", "outcome", "sentence"),
    [
        ("is killed", Outcome.CRASHED, "rank 1: killed by signal 9; its last lines: rank 1: is"),
        ("exits with 7", Outcome.CRASHED, "left with exit status 7; its last lines: rank"),
        ("silent", Outcome.CRASHED, "without a step that could be read; its last lines: rank"),
        ("NaN", Outcome.INVALID, "step 0: loss nan, None as gradient norm"),
        ("bad report", Outcome.INVALID, "must have step_seconds, .*, got 'step_time'"),
        ("flood", Outcome.OK, ""),
        ("ignores SIGTERM", Outcome.OK, ""),
        ("forks away", Outcome.OK, ""),
    ],
)
def test_how_a_command_ends(
    trials: Trials, spec: TrialSpec, behaviour: str, outcome: Outcome, sentence: str
) -> None:
    _, ended = trials.run(spec, recipe(behaviour, stop_seconds=0.5))
    assert ended.outcome is outcome, ended
    assert re.search(sentence, ended.reason), ended.reason
    assert not _sleepers()


def test_a_command_that_hangs_meets_its_deadline(trials: Trials, spec: TrialSpec) -> None:
    spec = dataclasses.replace(spec, step_deadline_seconds=1.0)
    _, ended = trials.run(spec, recipe("hangs"))
    assert ended.outcome is Outcome.TIMEOUT
    assert ended.reason == "step 2 was not done within its 1 s"


def test_an_exit_status_can_mean_out_of_memory(trials: Trials, spec: TrialSpec) -> None:
    values = recipe("exits with 7", out_of_memory={"exit_statuses": [7]})
    _, ended = trials.run(spec, values)
    assert ended.outcome is Outcome.OOM


def test_a_regular_expression_that_matches_nothing(trials: Trials, spec: TrialSpec) -> None:
    figures = {"step_seconds": {"pattern": r"seconds=([\d.]+)"}}
    _, ended = trials.run(spec, recipe("silent", figures=figures))
    assert ended.outcome is Outcome.CRASHED
    assert "trained without a word" in ended.reason


def test_a_program_that_is_not_there(trials: Trials) -> None:
    command, host = trials.command(recipe(argv=["no-such-program"]))
    with pytest.raises(NodeCheckFailed, match="node 0: the program 'no-such-program' is not on"):
        command.check(TestCommand.space().cluster, [host])


def test_nothing_is_left_when_the_host_process_is_killed(trials: Trials, spec: TrialSpec) -> None:
    command, host = trials.command(recipe("forks away", stop_seconds=0.5))
    events = command.run(spec, [host])
    next(events)
    assert _sleepers()
    psutil.Process(host._process.pid).kill()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 20
    while _sleepers():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(Exception, match="ended with status -9"):
        list(events)


def _sleepers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if _arguments(p) == ["sleep", "1000"]]
