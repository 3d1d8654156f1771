"""The benchmark on published runs: its output, and its targets where the runs are at hand."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.published import judge, order_within_sets
from tests.autotune.calibration.test_published_runs import ROW, read, written
from tests.conftest import REPOSITORY

PUBLISHED = REPOSITORY.parent / "shared" / "published_runs" / "published.csv"
# The keys of a row that the acceptance of this benchmark reads.
KEYS = {
    *("id", "status", "doubt", "oom", "fit_probability", "why_not"),
    *("published_step_seconds", "predicted_step_seconds", "low_step_seconds", "high_step_seconds"),
    *("published_peak_memory_gib", "predicted_peak_memory_gib"),
}


def rows_of(runs: Path, out: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "benchmarks/published.py", "--runs", str(runs), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "No constant is fitted to published runs" in " ".join(done.stdout.split())
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return rows


def test_every_row_has_a_prediction_or_a_reason(tmp_path: Path) -> None:
    file = written(
        tmp_path / "runs.csv",
        ROW,
        {**ROW, "id": "r2", "status": "no", "why_not": "FP8"},
        {**ROW, "id": "r3", "step_seconds": "", "oom": 1, "doubt": "assumed"},
        {**ROW, "id": "r4", "zero_stage": 3},
    )
    rows = rows_of(file, tmp_path / "out.json")
    assert all(row.keys() >= KEYS for row in rows)
    said, fp8, out_of_memory, unsupported = rows
    assert said["low_step_seconds"] < said["predicted_step_seconds"] < said["high_step_seconds"]
    assert said["published_step_seconds"] == 5.5 and said["why_not"] is None
    assert said["predicted_peak_memory_gib"] > 0 and 0 <= said["fit_probability"] <= 1
    assert fp8["predicted_step_seconds"] is None and fp8["why_not"] == "FP8"
    assert out_of_memory["oom"] and out_of_memory["doubt"]
    assert out_of_memory["published_step_seconds"] is None
    assert "trainer megatron has ZeRO stage 0 and 1 only" in unsupported["why_not"]


def test_a_bad_file_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/published.py", "--runs", str(tmp_path / "none.csv")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: runs: ") and done.stderr.count("\n") == 1


def test_order_is_judged_within_one_model_on_one_cluster(tmp_path: Path) -> None:
    layouts = [{"tp": 1, "dp": 32}, {"tp": 2, "dp": 16}, {"tp": 4, "dp": 8}, {"tp": 8, "dp": 4}]
    rows = [
        judge(read(tmp_path, **layout, sequence_parallel=0, step_seconds=seconds))
        for layout, seconds in zip(layouts, (5.0, 5.5, 6.0, 6.6), strict=True)
    ]
    assert order_within_sets(rows) == [(pytest.approx(1.0), 0.0)]
    other = judge(read(tmp_path, layers=16, step_seconds=1.0))
    assert len(order_within_sets([*rows, other])) == 1, "one run is no set"
    worst_first = [
        judge(read(tmp_path, **layout, sequence_parallel=0, step_seconds=seconds))
        for layout, seconds in zip(layouts, (6.6, 6.0, 5.5, 5.0), strict=True)
    ]
    assert order_within_sets(worst_first) == [(pytest.approx(-1.0), pytest.approx(0.32))]


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published runs are not there")
def test_published_runs_are_predicted(tmp_path: Path) -> None:
    rows = [
        row
        for row in rows_of(PUBLISHED, tmp_path / "out.json")
        if row["status"] in ("direct", "stand-in")
        and not row["doubt"]
        and row["published_step_seconds"]
        and row["predicted_step_seconds"]
    ]
    errors = [abs(r["predicted_step_seconds"] / r["published_step_seconds"] - 1) for r in rows]
    assert len(rows) > 190
    assert statistics.median(errors) < 0.06
    assert statistics.fmean(errors) < 0.1
    held = [
        r["low_step_seconds"] <= r["published_step_seconds"] <= r["high_step_seconds"] for r in rows
    ]
    assert 0.75 <= statistics.fmean(held) <= 0.9
