"""Trials of a training command: figures, outcomes, and no process left."""

import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.errors import NodeCheckFailed
from autotune.trial.trial import Ended, Outcome, TrialSpec
from tests.trainables.command.conftest import CommandContract, Trials, sleepers
from tests.trainables.command.recipes import recipe

FROM_LOG = {
    "step_seconds": {"pattern": r"elapsed ms: ([\d.]+)", "scale": 0.001},
    "loss": {"pattern": r"loss: (\S+)"},
}


class TestCommand(CommandContract):
    pass


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


def test_ranks_of_a_node_that_all_report_count_once(trials: Trials, spec: TrialSpec) -> None:
    steps, ended = trials.run(spec, under_torchrun(recipe(processes="node"), "all report"))
    assert ended.outcome is Outcome.OK, ended
    assert [step.loss for step in steps] == pytest.approx([5.0, 4.9, 4.8])


def under_torchrun(values: dict[str, Any], behaviour: str) -> dict[str, Any]:
    """The recipe, started by torchrun once per node."""
    launcher = ["-m", "torch.distributed.run", "--nnodes", "{nodes}"]
    launcher += ["--nproc-per-node", "{devices_per_node}", "--node-rank", "{node_rank}"]
    launcher += ["--master-addr", "{master_addr}", "--master-port", "{master_port}"]
    script = ["script.py", behaviour, "{micro_batch_size}"]
    return {**values, "argv": [sys.executable, *launcher, *script]}


def test_one_process_per_node_starts_its_own_ranks(trials: Trials, spec: TrialSpec) -> None:
    values = under_torchrun(recipe(processes="node", figures=FROM_LOG), "trains")
    steps, ended = trials.run(spec, values)
    assert ended.outcome is Outcome.OK, ended
    assert len(steps) == spec.steps


def test_an_exit_status_can_mean_out_of_memory(trials: Trials, spec: TrialSpec) -> None:
    values = recipe("exits with 7", out_of_memory={"exit_statuses": [7]})
    _, ended = trials.run(spec, values)
    assert ended.outcome is Outcome.OOM


def test_a_function_of_the_user_reads_the_log(trials: Trials, spec: TrialSpec) -> None:
    steps, ended = trials.run(spec, recipe(reader="reader.py:read"))
    assert ended.outcome is Outcome.OK, ended
    assert [step.step_seconds for step in steps] == pytest.approx([0.02] * 3)
    assert [step.loss for step in steps] == pytest.approx([5.0, 4.9, 4.8])


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("raises", "reader reader.py:raises: ZeroDivisionError: division by zero"),
        ("returns_text", "what returns_text returns must be a JSON object, got 'fast'"),
        ("absent", "reader reader.py:absent: KeyError: 'absent'"),
    ],
)
def test_a_function_that_cannot_read_the_log(
    trials: Trials, spec: TrialSpec, function: str, sentence: str
) -> None:
    _, ended = trials.run(spec, recipe(reader=f"reader.py:{function}"))
    assert ended.outcome is Outcome.INVALID and ended.reason.endswith(f": {sentence}")


def test_the_file_of_the_reader_must_be_on_each_node(trials: Trials) -> None:
    command, host = trials.command(recipe(reader="absent.py:read"))
    with pytest.raises(NodeCheckFailed, match=r"node 0: the file of the reader, .*absent\.py'"):
        command.check(TestCommand.space().cluster, [host])


def test_files_of_a_trial_are_kept_or_removed(trials: Trials, spec: TrialSpec) -> None:
    code = "import sys; open(sys.argv[1] + '/kept', 'w').write(open(sys.argv[2] + '/a').read())"
    told = ["{log_directory}", "{scratch_directory}"]
    report = "; print(sys.argv[2]); from autotune.report import step; step(step_seconds=1)"
    argv = [sys.executable, "-c", code + report, *told]
    trials.run(spec, recipe(argv=argv, files={"a": "micro-batches of {micro_batch_size}"}))
    assert spec.log_dir is not None
    logs = Path(spec.log_dir)
    started, scratch, *_ = (logs / "rank-0.log").read_text().splitlines()
    assert started.startswith(f"+ {sys.executable}")
    assert (logs / "kept").read_text() == "micro-batches of 1"
    assert scratch.startswith("/") and not Path(scratch).exists()


def test_a_program_that_is_not_there(trials: Trials) -> None:
    command, host = trials.command(recipe(argv=["no-such-program"]))
    with pytest.raises(NodeCheckFailed, match="node 0: the program 'no-such-program' is not on"):
        command.check(TestCommand.space().cluster, [host])


def test_nothing_is_left_when_the_host_process_is_killed(trials: Trials, spec: TrialSpec) -> None:
    command, host = trials.command(recipe("forks away", stop_seconds=0.5))
    events = command.run(spec, [host])
    next(events)
    assert sleepers()
    psutil.Process(host._process.pid).kill()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 20
    while sleepers():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(Exception, match="ended with status -9"):
        list(events)
