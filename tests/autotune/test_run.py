"""The command line as users meet it: real searches in processes of their own."""

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from autotune.commands.run import main
from autotune.options.command_line import command_line
from autotune.store.results import load
from autotune.store.run_directory import open_run
from autotune.trial.trial import Outcome
from tests.autotune.simulate import rewrite_json

SMALL_SPACE = """
import dataclasses
from search_spaces import tiny

def space():
    whole = tiny.space()
    model = dataclasses.replace(
        whole.model, num_hidden_layers=4, hidden_size=64, intermediate_size=96, vocab_size=512,
        sequence_length=32,
    )
    return dataclasses.replace(
        whole, name="small", model=model, max_trials=5, measured_steps=5,
        cluster=dataclasses.replace(whole.cluster, gpus_per_node=1, memory_gib=0.03),
        zero_stage=(0, 1), micro_batch_size=(1, 2), rmsnorm_kernel=("fused",),
        tensor_parallel=(1, 2),
    )
"""


@pytest.fixture
def space_file(tmp_path: Path) -> Path:
    file = tmp_path / "small space.py"
    file.write_text(SMALL_SPACE)
    return file


def command(*arguments: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "autotune.run",
        "--no-dashboard",
        "--no-report",
        *map(str, arguments),
    ]


def started(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def wait_for_trials(directory: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(directory.glob("trials/0*.parquet"))) < count:
        assert time.monotonic() < deadline, "the search does not get on"
        time.sleep(0.05)


# Ray's own per-node agents notice after a minute that their node was killed; they hold nothing.
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def family_of(process_id: int) -> list[psutil.Process]:
    """All descendants but Ray's agents; asked while they live."""
    family = []
    for process in psutil.Process(process_id).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not " ".join(process.cmdline()).startswith(RAY_AGENTS):
                family.append(process)
    return family


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.timeout(300)
def test_a_search_of_real_trials_from_end_to_end(space_file: Path, tmp_path: Path) -> None:
    """Killed by kill -9 while ranks are at work, and resumed elsewhere."""
    out = tmp_path / "läuft"
    # A guided search may end before its budget.
    options = ("--search", "random", "--env", "MARK=1", "--trace-steps", 2)
    search = started("--space", space_file, "--out", out, *options)
    wait_for_trials(out, 2)
    family = family_of(search.pid)
    os.kill(search.pid, signal.SIGKILL)
    search.communicate()
    wait_until_gone(family)
    finished = contents(out)
    resumed_elsewhere(out)
    assert contents(out).items() >= finished.items(), "never touched again"
    check_nothing_is_lost_or_repeated(out)
    records = open_run(out).trials()
    measured = [record for record in records if record.outcome is Outcome.OK]
    steps = {"explore": 5, "confirm": 15}
    assert measured and all(r.measurement.measured_steps == steps[r.purpose] for r in measured)
    assert all(record.startup_seconds < 5 for record in measured)
    best = json.loads((out / "best.json").read_text())
    assert best["trial_id"] in {r.trial_id for r in measured} and best["simulated"] is False
    for name in ("deepspeed.json", "layout.json", "model.json", "launch.sh"):
        assert (out / "export" / name).exists()
    check_launch_script(out / "export")
    check_traces(out)


def contents(out: Path) -> dict[str, bytes]:
    """The finished trials."""
    return {file.name: file.read_bytes() for file in out.glob("trials/0*.parquet")}


def check_nothing_is_lost_or_repeated(out: Path) -> None:
    records = open_run(out).trials()
    explored = [record.layout for record in records if record.purpose == "explore"]
    assert len(explored) == 5 == len(set(explored))
    confirmed = [record.layout for record in records if record.purpose == "confirm"]
    assert confirmed and len(confirmed) == len(set(confirmed)) and set(confirmed) <= set(explored)
    numbers = [int(record.trial_id) for record in records]
    assert numbers == list(range(1, len(records) + 1))


def check_traces(out: Path) -> None:
    """The last steps of the confirming trials are on record, and drawn."""
    run = load(out)
    confirmed = [r for r in open_run(out).trials() if r.purpose == "confirm"]
    worked = {record.trial_id for record in confirmed if record.outcome is Outcome.OK}
    traced = {file.stem for file in out.glob("traces/*.parquet")}
    assert worked <= traced <= {record.trial_id for record in confirmed}
    for trial_id in worked:
        layout = run.layout_of(trial_id)
        traces = run.trace_of(trial_id)
        assert [trace.rank for trace in traces] == list(range(layout.world_size))
        assert len({done.step for trace in traces for done in trace.intervals}) == 2
    picture = out.with_name("step.json")
    drawn = subprocess.run(
        [sys.executable, "-m", "autotune", "pipeline", out, "--out", picture],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert drawn.returncode == 0 and "wrote the measured schedule of trial" in drawn.stderr
    assert json.loads(picture.read_text())["otherData"]["source"] == "measured"


def resumed_elsewhere(out: Path) -> None:
    """Other software than the run was begun with is said, and taken when that is asked for."""

    def older(run: dict[str, Any]) -> None:
        for node in run["nodes"]:
            node["torch"] = "2.0.1"

    rewrite_json(out / "run.json", older)
    resume = ("--resume", out, "--env", "MARK=1")
    refused = subprocess.run(command(*resume), capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2
    assert "the cluster must be the one that the run was begun on (torch was '2.0.1', is " in (
        refused.stderr
    )
    assert refused.stderr.count("\n") == 1
    flag = "--allow-different-cluster"
    allowed = subprocess.run(command(*resume, flag), capture_output=True, text=True, timeout=200)
    assert allowed.returncode == 0, allowed.stderr
    assert "the cluster has changed: torch was '2.0.1', is " in allowed.stdout


def check_launch_script(export: Path) -> None:
    """The exported script trains the layout, without us."""
    environment = {**os.environ, "PYTHON": sys.executable, "STEPS": "3"}
    run = subprocess.run(
        [export / "launch.sh"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    *steps, summary = map(json.loads, run.stdout.splitlines())
    assert summary["outcome"] == "ok" and len(steps) == 3 == len(summary["losses"])


@pytest.mark.slow  # on simulated trials: tests/faults/test_driver.py
@pytest.mark.timeout(200)
def test_ctrl_c_leaves_no_ranks(space_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    search = started("--space", space_file, "--out", out, start_new_session=True)
    wait_for_trials(out, 1)
    family = family_of(search.pid)
    os.killpg(search.pid, signal.SIGINT)
    output, _ = search.communicate(timeout=60)
    assert search.returncode == 130, output
    assert f"continue with --resume {out}" in output
    assert "Traceback" not in output
    wait_until_gone(family)


SIMULATED = ("--space", "llm13b", "--trainable", "simulated", "--max-trials", 2)


@pytest.mark.parametrize(
    "screen", ["> /dev/full", "| head -1", pytest.param(">&-", marks=pytest.mark.slow)]
)
def test_a_search_goes_on_without_its_screen(screen: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = shlex.join(command(*SIMULATED, "--out", out))
    search = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{words} {screen}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert search.returncode == 0, search.stderr
    assert search.stdout.count("\n") == ("head" in screen)
    assert "Traceback" not in search.stderr and "Exception" not in search.stderr
    assert json.loads((out / "best.json").read_text())["layout"]


@pytest.mark.parametrize(
    ("streams", "status", "sentence"),
    [
        pytest.param(">&-", 2, "error: the standard output cannot", marks=pytest.mark.slow),
        ("> /dev/full", 2, "error: the standard output cannot be written: No space left on"),
        pytest.param("2>&-", 0, "", marks=pytest.mark.slow),
    ],
)
def test_a_result_that_cannot_be_printed_is_an_error(
    streams: str, status: int, sentence: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = shlex.join(command(*SIMULATED, "--json", "--out", out))
    search = subprocess.run(
        ["bash", "-c", f"{words} {streams}"], capture_output=True, text=True, timeout=120
    )
    best = json.loads((out / "best.json").read_text())
    assert search.returncode == status, search.stderr
    assert (search.stderr.splitlines() or [""])[-1].startswith(sentence)
    assert search.stdout == "" if status else json.loads(search.stdout) == best


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_three_times_nothing_is_lost_or_repeated(space_file: Path, tmp_path: Path) -> None:
    """kill -9 before the first trial, between trials, and near the end; then to the end."""
    out = tmp_path / "läuft"
    pause = random.Random(7)
    arguments: tuple[object, ...] = ("--space", space_file, "--out", out)
    arguments += ("--search", "random")  # a guided one may end before its budget
    finished_before: dict[str, bytes] = {}
    for trials_before_the_kill in (0, 2, 4):
        search = started(*arguments)
        if trials_before_the_kill == 0:
            deadline = time.monotonic() + 120
            while not (out / "run.json").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
        wait_for_trials(out, trials_before_the_kill)
        time.sleep(pause.uniform(0, 1))
        family = family_of(search.pid)
        os.kill(search.pid, signal.SIGKILL)
        search.communicate()
        wait_until_gone(family)
        for name, content in finished_before.items():
            assert (out / "trials" / name).read_bytes() == content, "never touched again"
        finished_before = {f.name: f.read_bytes() for f in out.glob("trials/0*.parquet")}
        assert len(finished_before) >= trials_before_the_kill
        arguments = ("--resume", out)
    last = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=200)
    assert last.returncode == 0, last.stdout + last.stderr
    check_nothing_is_lost_or_repeated(out)


@pytest.mark.timeout(120)
def test_recorded_runs_are_replayed_through_the_whole_stack(tmp_path: Path) -> None:
    runs = tmp_path / "small sweep.csv"
    runs.write_text(RECORDED)
    out = tmp_path / "run"
    search = subprocess.run(
        command("--trainable", "replay", "--runs", runs, "--out", out, "--json"),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert search.returncode == 0, search.stdout + search.stderr
    assert "replayed: figures are recorded ones" in search.stderr
    assert "/32]" in search.stderr and "[confirm]" in search.stderr
    best = json.loads(search.stdout)
    assert best == json.loads((out / "best.json").read_text()), "all that the standard output has"
    assert {"layout", "trial_id", "step_seconds", "mfu", "peak_memory_gib", "simulated"} <= set(
        best
    )
    assert (best["step_seconds"], best["layout"]["pipeline_parallel"]) == (56.5, 2)
    assert best["peak_memory_gib"] is None, "it was not recorded"
    outcomes = {record.outcome for record in open_run(out).trials()}
    assert outcomes == {Outcome.OK, Outcome.OOM}


RECORDED = """\
sweep,trial_id,model,sequence_length,world_size,global_batch_size,tensor_parallel,\
pipeline_parallel,data_parallel,micro_batch_size,activation_checkpointing,sequence_parallel,\
attention_kernel,rmsnorm_kernel,outcome,step_seconds,mfu
small,1,13B,2048,32,2048,1,1,32,1,none,False,flash2,True,oom,,
small,2,13B,2048,32,2048,1,2,16,1,none,False,flash2,True,ok,56.5,0.66
small,3,13B,2048,32,2048,2,1,16,1,none,True,flash2,True,ok,60.0,0.62
"""


# With a bundle per node Ray is at work for more than ten minutes.
@pytest.mark.timeout(300)
def test_very_many_virtual_nodes_are_searched_and_said_to_be_reserved_together(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    arguments = ("--space", "llm13b", "--nodes", 16_384, "--max-trials", 2, "--out", out)
    search = started(*arguments, "--trainable", "simulated")
    printed, _ = search.communicate(timeout=240)
    assert search.returncode == 0, printed
    assert printed.count("the 16384 virtual nodes are reserved together: ") == 1
    records = open_run(out).trials()
    assert {record.layout.world_size for record in records} == {8 * 16_384}


BAD_INPUT = [
    ((), "--space, --model or --resume must be given"),
    (("--space", "huge"), "--space must be one of"),
    (("--space", "no/such.py"), "cannot read 'no/such.py'"),
    (("--space", "tiny", "--nodes", "0"), "--nodes"),
    (("--space", "tiny", "--nodes", "many"), "'many' is not a valid integer"),
    (("--space", "tiny", "--max-trials", "-1"), "--max-trials"),
    (("--space", "tiny", "--gpu-hours", "0"), "--gpu-hours"),
    (("--space", "tiny", "--gpu-hours", "nan"), "--gpu-hours"),
    (("--space", "tiny", "--stop-factor", "0.5"), "--stop-factor"),
    (("--space", "tiny", "--trial-timeout", "0"), "--trial-timeout"),
    (("--space", "tiny", "--until", "25:00"), "--until must be a time such as 18:30 or"),
    (("--space", "tiny", "--until", "nan"), "--until must be a time such as 18:30 or"),
    (("--space", "tiny", "--until", "-5"), "--until must be a time such as 18:30 or"),
    (("--space", "tiny", "--until", "2020-01-01T18:30"), "--until must be in the future"),
    (("--space", "tiny", "--search", "annealing"), "--search must be one of"),
    (("--space", "tiny", "--trainable", "magic"), "--trainable"),
    (
        ("--space", "tiny", "--trainable", "replay"),
        "--runs must be given with a trainable that replays",
    ),
    (("--space", "tiny", "--runs", "x.csv"), "--runs must be given with a trainable that replays"),
    (("--trainable", "replay", "--runs", "no.csv"), "no such file or folder: 'no.csv'"),
    (
        ("--trainable", "replay", "--runs", "no.csv", "--fix", "tensor_parallel=1"),
        "uses all recorded layouts unchanged: --fix cannot be given",
    ),
    (("--space", "tiny", "--gpu", "abacus"), "device must be one of a100-40gb, a100-80gb"),
    (("--space", "tiny", "--gpu", "no.json"), "--gpu: cannot read 'no.json'"),
    (("--space", "tiny", "--training-gpu-hours", "0"), "--training-gpu-hours"),
    (
        ("--space", "llm13b", "--trainable", "simulated", "--address", "127.0.0.1:6379"),
        "--address must be given for real trials only",
    ),
    (("--space", "tiny", "--fix", "tensor_parallel"), "--fix must be NAME=VALUE"),
    (("--space", "tiny", "--fix", "tensor_parallel=3"), "no layout is left"),
    (("--space", "tiny", "--fix", "tensor_parallel=x"), "tensor_parallel"),
    (("--space", "tiny", "--fix", "model_parallel=2"), "dimension must be one of"),
    (("--space", "tiny", "--fix", "fp8=true"), "FP8 (fp8) is not offered yet"),
    (("--space", "tiny", "--fix", "zero_stage=1", "--fix", "zero_stage=2"), "given twice"),
    (("--space", "tiny", "--env", "A B=1"), "NAME must be letters, digits and underscores"),
    (("--space", "tiny", "--env", "RANK=1"), "RANK is set for each rank"),
    (("--space", "tiny", "--data", ""), "--data: no such file or folder: ''"),
    (("--space", "tiny", "--trial-timeout", "inf"), "--trial-timeout"),
    (("--space", "tiny", "--model", '{"dtype": []}'), "dtype must be float32 or bfloat16"),
    (("--space", "tiny", "--env", "NAME"), "--env must be NAME=VALUE"),
    (("--space", "tiny", "--data", "/no/such"), "--data: no such file or folder"),
    (
        ("--space", "tiny", "--data", "/tmp", "--synthetic-data"),
        "--data must not be given with --synthetic-data",
    ),
    (("--space", "tiny", "--model", "/no/such"), "--model: cannot read"),
    (("--space", "tiny", "--model", '{"hidden_size": 3}'), "are missing"),
    (("--space", "tiny", "--sequence-length", "0"), "--sequence-length"),
    (("--space", "tiny", "--global-batch-size", "7", "--fix", "data_parallel=4"), "no layout"),
    (("--resume", "/no/such/run"), "run.json is missing"),
    (
        ("--space", "llm13b", "--trainable", "deepspeed"),
        "needs 8 nodes of 8 GPUs, this machine is 1 node of 0 GPUs",
    ),
    (("--space", "tiny", "--address", "127.0.0.1:1"), "--address: cannot connect to '127.0.0.1:1'"),
    (("--space", "tiny", "--unheard-of"), "No such option"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_INPUT, ids=lambda value: str(value)[:50])
def test_bad_input_is_one_line_and_status_2(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "never made"
    given = arguments if "--resume" in arguments else (*arguments, "--out", str(out))
    assert command_line(main, given) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    assert sentence in captured.err
    assert not out.exists()


def test_options_that_a_resumed_search_cannot_change(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--resume", str(tmp_path), "--seed", "3"])
    assert "--seed cannot be changed by --resume" in str(result.exception)


def test_dry_run_starts_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "never made"
    assert command_line(main, ["--space", "llm65b", "--dry-run", "--out", str(out)]) == 0
    text = capfd.readouterr().out
    assert "on 16 nodes of 8 a100-80gb" in text
    assert "would run at most 32 trials" in text and "Nothing was started." in text
    assert "predicted to take about" in text
    assert not out.exists()
