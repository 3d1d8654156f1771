"""The probe's command line: what it refuses before anything is started, and its hardware files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from autotune.calibration.probed import Probed
from autotune.cluster import Cluster
from autotune.commands.probe import main
from autotune.cost.trainers import constants_for
from autotune.errors import NodeCheckFailed
from autotune.hardware import device_named, unknown_gpu
from autotune.hardware.local_devices import local_gpus
from autotune.options.command_line import command_line
from autotune.trial.trainable import Finding

SOURCE = "measured by autotune probe, 2026-11-29, a test"
FACTS = {"library": "NCCL 2.27.3", "total_memory_gib": 79.1, "multiprocessors": 132}
BANDWIDTHS = ("copy", "rms_norm", "add", "rotation", "gate", "loss", "optimizer")
PRODUCT = {"rows": 128 * 132, "columns": 256, "inner": 4096, "seconds": 1e-4, "tflops": 600.0}

BAD_INPUT = [
    (("--space", "abacus"), "space"),
    (("--gpu", "abacus"), "--gpu: device must be one of"),
    (("--nodes", "0"), "--nodes"),
    (("--seconds", "0"), "--seconds"),
    (("--seconds", "nan"), "--seconds"),
    (("--env", "A"), "--env must be NAME=VALUE"),
    (("--network", "abacus"), "--network: network must be one of"),
    (("--memory-gib", "-1"), "--memory-gib"),
    (("--address", "127.0.0.1:6379", "--gpu", "cpu"), "--gpus-per-node must be given with"),
    (("--address", "127.0.0.1:6379", "--gpus-per-node", "1"), "--gpu must be given with"),
    (("--address", "ray://nowhere", "--space", "tiny"), "--address"),
    (("--out", "used"), "--out must be empty or new"),
    (("--out", "used/file"), "--out must be a new directory"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_INPUT, ids=str)
def test_bad_input_is_one_line_and_status_2(
    arguments: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    assert command_line(main, arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    assert sentence in captured.err
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "file"]
    assert (tmp_path / "used" / "file").read_text() == "mine"


@pytest.mark.skipif(bool(local_gpus()), reason="this machine has a GPU")
def test_gpus_that_are_not_there_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line(main, ["--gpu", "h100", "--gpus-per-node", "8"]) == 2
    assert "needs 1 node of 8 GPUs, this machine is 1 node of 0 GPUs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def probed(*more: Finding, **facts: Any) -> Probed:
    found = Probed()
    points = [("facts", {**FACTS, "context_gib": 1.5, **facts}), ("matrix_products", PRODUCT)]
    points += [("bandwidth", {"operation": name, "gb_per_second": 3000.0}) for name in BANDWIDTHS]
    for curve, point in points:
        found.add(Finding(curve=curve, point=point))
    for finding in more:
        found.add(finding)
    return found


def test_a_gpu_without_a_file_is_described_by_what_it_tells_itself() -> None:
    device = probed().device(unknown_gpu("X100"), SOURCE)
    assert (device.memory_gib, device.multiprocessors) == (79.1, 132)
    assert device.peak_bf16_tflops == 600
    assert "the peak is that of the fastest matrix product" in device.source
    constants = constants_for(device, "deepspeed_llm")
    assert constants["gemm_efficiency"] == pytest.approx(1, rel=1e-3)
    assert constants["context_gib"] == 1.5 and constants["usable_memory"] == 1


def test_figures_of_a_data_sheet_stay() -> None:
    h100 = device_named("h100")
    device = probed().device(h100, SOURCE)
    assert device.peak_bf16_tflops == h100.peak_bf16_tflops
    assert device.constants["gemm_efficiency"].value == pytest.approx(600 / 989, rel=1e-3)
    assert device.constants["gemm_efficiency"].kind == "stated"
    assert device.constants["gemm_efficiency"].source == SOURCE


def test_a_measured_constant_goes_before_one_that_was_fitted_for_the_trainer() -> None:
    cpu = device_named("cpu")
    assert "attention.sdpa_flash.efficiency" in cpu.trainers["deepspeed_llm"]
    points = [
        Finding(
            curve="attention sdpa_flash", point={"sequence_length": n, "tflops": 0.02, "seconds": 1}
        )
        for n in (64, 128)
    ]
    device = probed(*points, total_memory_gib=None, context_gib=None).device(cpu, SOURCE)
    assert constants_for(device, "deepspeed_llm")["attention.sdpa_flash.efficiency"] == 0.2


def test_math_attention_gives_the_traffic_of_its_scores() -> None:
    h100 = dataclasses.replace(device_named("h100"), peak_bf16_tflops=1000.0)
    scores, head_size, traffic = 2**26, 128, 80.0
    products = 6 * 2 * scores * head_size / (0.55 * 1000e12)
    written = scores * traffic / 3000e9
    point = {"sequence_length": 2048, "scores": scores, "head_size": head_size}
    point |= {"seconds": products + written, "tflops": 1.0}
    device = probed(Finding(curve="attention math", point=point)).device(h100, SOURCE)
    constants = constants_for(device, "deepspeed_llm")
    assert constants["attention.math.score_traffic"] == pytest.approx(traffic, rel=1e-3)
    assert constants["attention.math.efficiency"] == 0.55


def test_what_could_not_be_measured_is_kept_with_its_reason() -> None:
    found = probed(Finding(curve="attention flash_attn", point={"error": "RuntimeError: no"}))
    assert found.errors == {"attention flash_attn": "RuntimeError: no"}
    assert found.attention == {}
    nothing = Probed()
    nothing.add(Finding(curve="facts", point=FACTS))
    nothing.add(Finding(curve="bandwidth", point={"error": "OutOfMemoryError: none"}))
    with pytest.raises(NodeCheckFailed, match="bandwidth could not be measured: OutOfMemory"):
        nothing.device(device_named("h100"), SOURCE)


def test_the_network_file_says_what_was_not_measured() -> None:
    cluster = Cluster(nodes=1, gpus_per_node=1, device=device_named("h100"))
    network = probed().network(cluster, SOURCE)
    assert network.name == "measured"
    assert network.source == f"{SOURCE}; what was not measured is that of dgx-h100"
    assert network.constants == cluster.links.constants
    json.dumps(dataclasses.asdict(network))
