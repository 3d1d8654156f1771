"""The table of docs/choosing.md is what the recorded runs say."""

import re
import statistics

import pytest

from autotune.calibration.recorded_runs import read_sweeps
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY.parent / "shared" / "paper_runs"
PAGE = (REPOSITORY / "docs" / "choosing.md").read_text("utf-8")


@pytest.mark.skipif(not FOLDER.exists(), reason=f"no recorded runs in {FOLDER}")
def test_the_table_of_sweeps() -> None:
    rows = {}
    ran_out, all_layouts = 0, 0
    for sweep in read_sweeps(FOLDER):
        ran = sorted((run for run in sweep.runs if run.step_seconds), key=lambda r: r.step_seconds)
        times = [run.step_seconds for run in ran]
        best = ran[0].layout
        assert best.micro_batch_size == 1 and best.activation_checkpointing == "none"
        assert best.attention_kernel == "flash2" and best.rmsnorm_kernel == "fused"
        of_two = min(r.step_seconds for r in ran if r.layout.micro_batch_size == 2)
        model = sweep.name.partition("_")[0]
        title = f"{model}, {sweep.model.sequence_length // 1024}k tokens, "
        rows[title + f"{sweep.cluster.devices} GPUs"] = (
            f"tp{best.tensor_parallel} pp{best.pipeline_parallel} mb1",
            f"{of_two / times[0]:.2f}",
            f"{statistics.median_high(times) / times[0]:.2f}",
            f"{times[-1] / times[0]:.2f}",
        )
        ran_out += sum(run.outcome == "oom" for run in sweep.runs)
        all_layouts += len(sweep.runs)
    found = re.findall(r"^\| (\d+B, .*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.M)
    assert {title: tuple(values) for title, *values in found} == rows
    assert f"{ran_out}\n  of the {all_layouts} layouts ran out of memory" in PAGE
