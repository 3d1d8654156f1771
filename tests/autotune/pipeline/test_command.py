"""`autotune pipeline` and `plan --pipeline`: a step as a file, measured where it was traced."""

import dataclasses
import json
import xml.etree.ElementTree as ET
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from autotune.commands.pipeline import main
from autotune.commands.plan import main as plan_main
from autotune.errors import InputError
from autotune.options.command_line import command_line
from autotune.pipeline.order import passes_of_stage
from autotune.store.results import load
from autotune.store.run_directory import open_run
from autotune.trial.trace import RankTrace, Traced
from autotune.trial.trainable import RankHost
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from tests.autotune.simulate import new_store, run_to_the_end, without_digests
from trainables.fake import FakeTrainable

EXPLAIN = ("--space", "llm13b", "--nodes", "8", "--explain")
LAYOUT = '{"tensor_parallel": 2, "pipeline_parallel": 4, "micro_batch_size": 8}'
Capture = pytest.CaptureFixture[str]


class Tracing(FakeTrainable):
    """Also pretends to have traced: each rank does a pass per second."""

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        for event in super().run(spec, hosts):
            if isinstance(event, Ended) and event.outcome is Outcome.OK and spec.trace_steps:
                ranks = range(spec.layout.world_size)
                traces = tuple(self._trace(spec, rank) for rank in ranks)
                event = dataclasses.replace(event, trace=traces)
            yield event

    def _trace(self, spec: TrialSpec, rank: int) -> RankTrace:
        layout = spec.layout
        passes = passes_of_stage(
            rank // layout.ranks_per_stage,
            layout.pipeline_parallel,
            layout.gradient_accumulation_steps,
        )
        intervals = tuple(
            Traced(step, kind, micro_batch, float(number), number + 0.5)
            for step in range(spec.first_traced_step, spec.steps)
            for number, (kind, micro_batch) in enumerate(passes)
        )
        return RankTrace(rank=rank, clock_offset_seconds=0.25, intervals=intervals)


def traced_run(directory: Path, trace_steps: int = 1) -> Path:
    store = new_store(directory, trainable="deepspeed", trace_steps=trace_steps, max_trials=6)
    run_to_the_end(store, worker=Tracing())
    return directory


def told(capsys: Capture, *arguments: object, status: int = 0) -> str:
    assert command_line(main, [str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_only_confirming_trials_are_traced_and_traces_are_read_back(tmp_path: Path) -> None:
    traced_run(tmp_path)
    run, records = load(tmp_path), open_run(tmp_path).trials()
    confirmed = [r for r in records if r.purpose == "confirm" and r.outcome is Outcome.OK]
    assert confirmed and len(confirmed) < len(records)
    assert sorted(file.stem for file in tmp_path.glob("traces/*")) == [
        record.trial_id for record in confirmed
    ]
    record = confirmed[0]
    traces = run.trace_of(record.trial_id)
    assert [trace.rank for trace in traces] == list(range(record.layout.world_size))
    first = traces[0]
    assert first.clock_offset_seconds == 0.25 and first.intervals[0][1:] == ("forward", 0, 0.0, 0.5)
    rows = run.traces.to_pylist()
    last = max(row["rank"] for row in rows if row["trial_id"] == record.trial_id)
    stages = {row["stage"] for row in rows if row["rank"] == last}
    assert record.layout.pipeline_parallel - 1 in stages
    assert run.trace_of("0001") == ()


@pytest.mark.parametrize("change", ["kind", "rank", "start_seconds"])
def test_a_damaged_trace_is_one_sentence(change: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    traced_run(tmp_path)
    (file, *_) = sorted(tmp_path.glob("traces/*"))
    without_digests(tmp_path)
    table = pq.read_table(file)
    bad = {"kind": "idle", "rank": -1.5, "start_seconds": float("nan")}[change]
    rows = [{**row, change: bad} for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), file)
    with pytest.raises(InputError, match=file.name) as error:
        load(tmp_path).trace_of(file.stem)
    assert "\n" not in str(error.value)


def test_the_best_trial_is_drawn_as_it_was_measured(tmp_path: Path, capsys: Capture) -> None:
    directory, out = traced_run(tmp_path / "run"), tmp_path / "step.json"
    best = open_run(directory).best()
    assert best is not None
    said = told(capsys, directory, "--out", out)
    assert said.startswith(f"wrote the measured schedule of trial {best['trial_id']}, tp")
    trace = json.loads(out.read_text())
    assert trace["otherData"]["source"] == "measured"
    assert {event["dur"] for event in trace["traceEvents"] if event["ph"] == "X"} == {5e5}


def test_a_trial_that_was_not_traced_is_predicted(tmp_path: Path, capsys: Capture) -> None:
    directory, out = traced_run(tmp_path / "run", trace_steps=0), tmp_path / "step.svg"
    assert not (directory / "traces").exists()
    record = next(r for r in open_run(directory).trials() if r.outcome is Outcome.OK)
    said = told(capsys, directory, record.trial_id, "--out", out)
    assert said.startswith(f"wrote the predicted schedule of trial {record.trial_id}, tp")
    assert "predicted" in texts(out) and record.layout.describe() in texts(out)


def texts(picture: Path) -> str:
    root = ET.fromstring(picture.read_text(encoding="utf-8"))
    elements = root.iter("{http://www.w3.org/2000/svg}text")
    return " | ".join("".join(element.itertext()) for element in elements)


def test_what_cannot_be_drawn_is_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    directory, out = traced_run(tmp_path / "run"), tmp_path / "step.svg"
    taken = tmp_path / "taken.svg"
    taken.write_text("mine")
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((tmp_path, "--out", out), "no run in '"),
        ((directory,), "Missing option '--out'"),
        ((directory, "0099", "--out", out), "TRIAL must be a trial that worked (0001, "),
        ((directory, "../0001", "--out", out), "must be a trial that worked"),
        ((directory, "--out", tmp_path / "step.pdf"), "--out must end in .svg, .png, .html, .json"),
        ((directory, "--out", taken), f"--out must be a new file, got '{taken}', which exists"),
        ((directory, "--out", tmp_path / "no" / "step.svg"), "--out must be in a directory that"),
    ]
    for arguments, sentence in cases:
        said = told(capsys, *arguments, status=2)
        assert sentence in said and said.count("\n") == 1, said
    assert taken.read_text() == "mine" and not out.exists()


def test_a_run_in_which_nothing_worked_has_no_step(tmp_path: Path, capsys: Capture) -> None:
    new_store(tmp_path / "run")
    said = told(capsys, tmp_path / "run", "--out", tmp_path / "step.svg", status=2)
    assert "must have a layout that worked, got none" in said


@pytest.mark.parametrize("suffix", [".svg", ".png", ".json"])
def test_a_plan_draws_the_layout_that_it_explains(
    suffix: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / f"step{suffix}"
    assert command_line(plan_main, [*EXPLAIN, LAYOUT, "--json", "--pipeline", str(out)]) == 0
    captured = capsys.readouterr()
    explained = json.loads(captured.out)
    assert "wrote the predicted schedule of llm13b, tp2 pp4 dp8" in captured.err
    if suffix == ".png":
        assert out.read_bytes().startswith(b"\x89PNG")
    elif suffix == ".svg":
        for word in ("predicted", "stage 3", "forward", "backward", "idle (bubble)"):
            assert word in texts(out)
    else:
        seconds = json.loads(out.read_text())["otherData"]["step_seconds"]
        assert seconds == pytest.approx(explained["step_seconds"], rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--space", "tiny", "--pipeline", "x.svg"), "--pipeline must be given with --explain"),
        ((*EXPLAIN, LAYOUT, "--pipeline", "x.gif"), "--pipeline must end in .svg, .png, .html"),
        ((*EXPLAIN, LAYOUT, "--pipeline", __file__), "--pipeline must end in "),
        ((*EXPLAIN, LAYOUT, "--pipeline", "no/x.svg"), "--pipeline must be in a directory that"),
    ],
)
def test_a_plan_refuses_a_picture_in_one_sentence(
    arguments: Sequence[str], sentence: str, capsys: Capture
) -> None:
    assert command_line(plan_main, list(arguments)) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.out == ""
