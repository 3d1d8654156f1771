"""The GPU benchmark: a small run on a CPU, and the rows that it would run on an H200."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.calibration.measured_device import measured_device, saturation
from autotune.errors import InputError
from autotune.hardware import device_from_json, device_named
from autotune.hardware.local_devices import local_gpus
from benchmarks.on_gpu import rows as rows_module
from benchmarks.on_gpu.children import ChildFailed, Children
from benchmarks.on_gpu.results import Results
from benchmarks.on_gpu.rows import Planner
from benchmarks.on_gpu.throughput import Worker

ROOT = Path(__file__).resolve().parent.parent.parent
H200 = device_named("h200")


def benchmark(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "run"
    done = benchmark(out, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "left" not in done.stdout
    return out


def content(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_every_mechanism_runs_on_a_cpu(run: Path) -> None:
    throughput = content(run)["throughput"]
    by_group = {group: [] for group in ("centre", "factor", "edge", "again")}
    for row in throughput.values():
        by_group[row["group"]].append(row["outcome"])
    assert by_group == {"centre": ["ok"], "factor": ["ok"] * 5, "edge": ["oom"], "again": ["ok"]}
    centre, again = throughput["centre"], throughput["centre again, after everything"]
    assert again["final_loss"] == centre["final_loss"], "what ran out of memory left nothing behind"


def test_the_peer_trains_the_same_shape(run: Path) -> None:
    found = content(run)["side_by_side"]
    assert {row["outcome"] for row in found.values()} == {"ok"}
    ours, theirs = found["small: ours sdpa_flash"], found["small: hugging_face"]
    # Untrained weights: both losses are near ln(512) = 6.24, that of a uniform prediction.
    assert ours["final_loss"] == pytest.approx(6.2, abs=0.2)
    assert theirs["final_loss"] == pytest.approx(6.2, abs=0.2)


def test_the_hardware_file_has_what_was_measured_and_predicts_every_row(run: Path) -> None:
    found = content(run)
    device = device_from_json((run / "cpu.json").read_text(), what="cpu.json")
    assert device.memory_gb_per_second == pytest.approx(
        found["curves"]["bandwidth"]["copy"], rel=1e-3
    )
    assert "measured by benchmarks/gpu.py" in device.constants["gemm_efficiency"].source
    compiled = {name for name, row in found["throughput"].items() if not row["environment"]}
    assert found["prediction"].keys() == compiled
    report = (run / "report.md").read_text()
    assert all(f"| {name} |" in report for name in found["throughput"])


def test_a_second_call_measures_nothing_again(run: Path) -> None:
    before = content(run)
    done = benchmark(run, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    after = content(run)
    for section in ("throughput", "side_by_side", "curves"):
        assert after[section] == before[section]


def test_results_of_another_device_are_not_gone_on_with(run: Path) -> None:
    with pytest.raises(InputError, match="must be from this device"):
        Results(run / "results.json", "h200")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"device": "cpu"}'])
def test_damaged_results_are_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match="results") as error:
        Results(tmp_path / "results.json", "cpu")
    assert len(str(error.value).splitlines()) == 1
    assert (tmp_path / "results.json").read_text() == text


def test_a_report_without_figures_says_not_measured(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "--gpu", "h200", "--report-only")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "report.md").read_text()
    assert report.count("not measured") > 60
    assert "ok" not in report.split()


def test_the_rows_of_an_h200() -> None:
    rows = Planner(H200).rows()
    assert 40 <= len(rows) <= 60
    edge = [row for row in rows if row.group == "edge"]
    assert len(edge) >= len(rows) / 3
    for fits, does_not in zip(edge[::2], edge[1::2], strict=True):
        assert does_not.model.num_hidden_layers == fits.model.num_hidden_layers + 1
    values = {
        name: {getattr(row.layout, name) for row in rows}
        for name in ("attention_kernel", "rmsnorm_kernel", "activation_checkpointing")
    }
    assert values["attention_kernel"] == set(H200.attention_kernels)
    assert values["rmsnorm_kernel"] == {"plain", "fused"}
    assert values["activation_checkpointing"] == {"none", "selective", "full"}
    assert {row.model.hidden_size for row in rows} == {4096, 5120, 6656, 8192}
    assert {row.model.sequence_length for row in rows} == {2048, 4096, 8192}
    assert {row.model.vocab_size for row in rows} == {32_000, 128_256}
    assert {row.layout.micro_batch_size for row in rows} == {1, 2, 4, 8}
    assert sum(row.layout.torch_compile for row in rows) >= 3


def test_the_pairs_have_the_target_s_shapes_and_the_same_model_for_all() -> None:
    pairs = Planner(H200).side_by_side()
    wide = [
        row.model
        for _, contenders in pairs
        for _, row in contenders
        if row is not None and row.model.hidden_size == 5120
    ]
    assert {model.sequence_length for model in wide} == {2048, 4096, 8192}
    assert all(model.num_hidden_layers >= 8 and model.vocab_size == 32_000 for model in wide)
    for _, contenders in pairs:
        assert len({row.model for _, row in contenders if row is not None}) == 1
        assert "hugging_face" in {who for who, _ in contenders}


def test_the_whole_cross_is_there_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # How many layers fit is of no interest here, and takes 20 s to find for so many rows.
    monkeypatch.setattr(Planner, "_layers_within", lambda *_: 1)
    assert len(Planner(H200).rows(full=True)) == 4 * 2 * 3 * 4 * 4 * 2 * 3


def test_saturation_finds_the_curve_that_made_the_points() -> None:
    points = [
        {"sequence_length": n, "tflops": 989 * 0.6 * n / (n + 900)} for n in (1024, 4096, 16384)
    ]
    assert saturation(points, 989) == pytest.approx((0.6, 900))
    flat = [{"sequence_length": n, "tflops": 300.0} for n in (1024, 4096)]
    assert saturation(flat, 1000) == pytest.approx((0.3, 0), abs=1e-6)


def test_curves_become_constants() -> None:
    bandwidths = {"copy": 4000.0, "rms_norm": 2000.0, "add": 2000.0, "rotation": 4000.0}
    bandwidths |= {"gate": 1000.0, "loss": 4000.0, "optimizer": 4000.0}
    curves = {
        # Full tiles of 132 multiprocessors at 70 % of the peak.
        "matrix_products": [{"rows": 128 * 132, "columns": 256, "tflops": 692.3}],
        "bandwidth": bandwidths,
        "overheads": {"step_seconds": 0.01, "context_gib": 0.8, "usable_memory": 0.99},
        "attention": {
            "sdpa_flash": [{"sequence_length": 4096, "tflops": 395.6}],
            "sdpa_cudnn": "not measured: no kernel",
        },
    }
    device = measured_device(H200, curves, "a test")
    ours = {name: found.value for name, found in device.trainers["deepspeed_llm"].items()}
    assert device.memory_gb_per_second == 4000
    assert device.constants["gemm_efficiency"].value == pytest.approx(0.7, rel=1e-3)
    assert device.constants["usable_memory"].value == 0.99
    stated = device.constants["usable_memory"].unfitted
    assert stated is not None and stated.value == H200.constants["usable_memory"].value
    # At a quarter of the copy bandwidth, the constant is 4 times the counted 18 bytes per element.
    assert ours["gate_traffic"] == 72
    assert ours["residual_traffic"] == 140
    flash = device.constants["attention.sdpa_flash.efficiency"]
    assert flash.value == pytest.approx(0.4) and flash.source == "a test"
    cudnn = "attention.sdpa_cudnn.efficiency"
    assert device.constants[cudnn] == H200.constants[cudnn]


def test_a_child_that_dies_or_hangs_is_a_result() -> None:
    children = Children([])
    assert children.call(sum, [1, 2], timeout_seconds=60) == 3
    with pytest.raises(ChildFailed, match="TypeError"):
        children.call(sum, 1, timeout_seconds=60)
    with pytest.raises(ChildFailed, match="ended with status 3"):
        children.call(_exit, 3, timeout_seconds=60)
    with pytest.raises(ChildFailed, match="longer than 1 s"):
        children.call(_sleep, timeout_seconds=1)


def _exit(status: int) -> None:
    import os

    os._exit(status)


def _sleep() -> None:
    import time

    time.sleep(60)


def test_the_benchmark_needs_neither_ray_nor_hyperopt() -> None:
    code = """if True:
    import sys
    import benchmarks.gpu, trainables.deepspeed_llm.launch
    print(sorted({"ray", "hyperopt", "openpyxl", "pyarrow", "torch"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_widths_are_those_of_the_published_models() -> None:
    assert rows_module.WIDTHS["70b"] == (8192, 28_672, 64, 8)
    assert rows_module.WIDTHS["13b"] == (5120, 13_824, 40, 40)


def test_a_host_process_that_dies_costs_its_row_only(tmp_path: Path) -> None:
    row = Planner(device_named("cpu"), 0.3).small_rows()[0]
    with Worker(device_named("cpu"), 0.3, tmp_path) as worker:
        assert worker.train(row)["outcome"] == "ok"
        (host,) = worker._hosts.values()
        host._process.kill()
        found = worker.train(row)
        assert (found["outcome"], found["step_seconds"]) == ("crashed", None)
        assert "ended with status -9" in found["reason"]
        assert worker.train(row)["outcome"] == "ok"


@pytest.mark.skipif(bool(local_gpus()), reason="this machine has a GPU")
@pytest.mark.parametrize("which", [("--device", "gpu"), ("--gpu", "h200")])
def test_a_gpu_that_is_not_there_is_one_sentence(tmp_path: Path, which: tuple[str, str]) -> None:
    done = benchmark(tmp_path, *which)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --device gpu: torch cannot use it")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
