"""Tests that need a GPU: `pytest -m gpu`. They are skipped on machines without one.

GPU code runs in ranks or in subprocesses: the test process never initialises CUDA.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.hardware.kernels import MODULES, why_not_installed
from autotune.hardware.local_devices import local_gpus

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = {
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "sequence_length": 512,
    "global_batch_size": 4,
}
# Hundreds of GiB of activations: more than any GPU has.
TOO_LARGE = {
    **MODEL,
    "num_hidden_layers": 64,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "sequence_length": 8192,
    "global_batch_size": 64,
}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not local_gpus(), reason="this machine has no GPU"),
]


def train(layout: dict[str, Any], model: dict[str, Any] = MODEL, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "trainables.deepspeed_llm", "--steps", "4"]
    command += ["--layout", json.dumps(layout), "--model", json.dumps(model), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def test_passes_are_timed_on_the_device() -> None:
    command = [sys.executable, "-m", "trainables.deepspeed_llm", "--steps", "4", "--layout", "{}"]
    command += ["--model", json.dumps({**MODEL, "num_hidden_layers": 8}), "--trace-steps", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, step, trace, _ = map(json.loads, done.stdout.splitlines())
    intervals = trace["intervals"]
    assert [done[1] for done in intervals].count("backward") == MODEL["global_batch_size"]
    for before, after in itertools.pairwise(intervals):
        assert before[3] <= before[4] <= after[3]
    busy = sum(end - start for *_, start, end in intervals)
    assert step["step_seconds"] / 2 < busy <= step["step_seconds"] * 1.01


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "change",
    [
        {"attention_kernel": "sdpa_cudnn"},
        {"attention_kernel": "math"},
        {"rmsnorm_kernel": "plain"},
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": "selective"},
        {"micro_batch_size": 1},
        {"torch_compile": True},
        *({"attention_kernel": kernel} for kernel in MODULES),
    ],
    ids=str,
)
def test_every_kernel_trains_the_same_model(change: dict[str, Any]) -> None:
    kernel = change.get("attention_kernel")
    if kernel in MODULES and (reason := why_not_installed(kernel)):
        pytest.skip(f"{kernel} {reason}")
    expected = train({"micro_batch_size": 4})
    found = train({"micro_batch_size": 4, **change})
    assert (expected["outcome"], found["outcome"]) == ("ok", "ok"), found["reason"]
    assert found["losses"] == pytest.approx(expected["losses"], abs=0.03)


def test_compiled_chains_are_the_written_ones() -> None:
    said = python(
        """if True:
        import torch
        from trainables.deepspeed_llm import pointwise
        torch.manual_seed(0)
        def near(function, *inputs, **options):
            found, expected = function(*inputs, **options), function.__wrapped__(*inputs, **options)
            torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
        def randn(*shape):
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
        for length in (128, 256):
            table = randn(2, length, 64)
            near(pointwise._rotated, randn(length, 2, 4, 64), *table)
            near(pointwise._split_and_rotated, randn(length, 2, 8, 64), *table, rotated=6)
            near(pointwise._rotated_back, *(randn(length, 2, n, 64) for n in (4, 2, 2)), *table)
            near(pointwise.gated, randn(length, 2, 192))
            near(pointwise.gated_backward, randn(length, 2, 96), randn(length, 2, 192))
        print("same")
        """
    )
    assert said.strip() == "same"


def test_the_host_never_waits_for_the_device_within_a_step() -> None:
    """torch raises on a synchronisation; the read of loss and norm at the end is allowed."""
    said = python(
        """if True:
        import torch
        from trainables.deepspeed_llm.kernels import rms_norm
        from trainables.deepspeed_llm.build import Build
        from trainables.deepspeed_llm.decoder import Decoder
        from trainables.deepspeed_llm.tensor_parallel import TensorParallel
        from autotune.layout import Layout
        from autotune.model import Model
        model = Model(num_hidden_layers=2, hidden_size=256, intermediate_size=512,
                      num_attention_heads=4, num_key_value_heads=2, vocab_size=1024,
                      sequence_length=256, global_batch_size=2)
        for checkpointing in ("none", "selective", "full"):
            layout = Layout(micro_batch_size=2, activation_checkpointing=checkpointing)
            decoder = Decoder(Build(model=model, layout=layout, parallel=TensorParallel(),
                                device=torch.device("cuda"), dtype=torch.bfloat16))
            tokens = torch.randint(1024, (2, 256), device="cuda")
            for turn in range(3):
                if turn == 2:  # compiled and warm
                    torch.cuda.set_sync_debug_mode("error")
                decoder(tokens, tokens).backward()
            torch.cuda.set_sync_debug_mode("default")
        print("never")
        """
    )
    assert said.strip() == "never"


def test_out_of_memory_is_a_result_and_the_device_is_free_again() -> None:
    layout = {"micro_batch_size": 64}
    found = train(layout, TOO_LARGE)
    assert found["outcome"] == "oom", found["reason"]
    assert "OutOfMemoryError" in found["reason"]
    assert train({"micro_batch_size": 4})["outcome"] == "ok"


def test_a_memory_limit_is_kept() -> None:
    found = train({"micro_batch_size": 4}, MODEL, "--memory-gib", "0.05")
    assert found["outcome"] == "oom", found["reason"]


def test_ranks_may_share_a_gpu_over_gloo() -> None:
    expected = train({"micro_batch_size": 2})
    for layout in (
        {"data_parallel": 2, "micro_batch_size": 2},
        {"tensor_parallel": 2, "micro_batch_size": 2},
    ):
        found = train(layout, MODEL, "--share-gpus")
        assert found["outcome"] == "ok", found["reason"]
        assert found["losses"] == pytest.approx(expected["losses"], abs=0.03)


def test_a_probe_of_all_gpus_measures_every_kernel() -> None:
    found: dict[str, Any] = json.loads(
        python(f"""if True:
    import json
    from autotune.calibration.probed import Probed
    from autotune.cluster import Cluster
    from autotune.hardware import network_to_json, unknown_gpu
    from trainables.probe.launch import DeepSpeedProber

    cluster = Cluster(nodes=1, gpus_per_node={local_gpus()}, device=unknown_gpu("gpu"))
    prober, probed = DeepSpeedProber(device_kind="gpu"), Probed()
    host = prober.host_factory()
    try:
        for finding in prober.measure(cluster, [host], seconds=60):
            if finding is not None:
                probed.add(finding)
    finally:
        host.close()
    device = probed.device(cluster.device, "a test")
    network = json.loads(network_to_json(probed.network(cluster, "a test")))
    print(json.dumps({{
        "library": probed.library,
        "attention": probed.attention,
        "curves": probed.collectives,
        "gemm": device.constants["gemm_efficiency"].value,
        "memory": [device.memory_gib, device.memory_gb_per_second],
        "network": network,
    }}))
    """)
    )
    assert found["library"].startswith(("NCCL 2.", "RCCL 2."))
    assert found["attention"].keys() >= {"math", "sdpa_flash"}
    assert 0.3 < found["gemm"] <= 1.001
    assert all(value > 1 for value in found["memory"])
    assert bool(found["curves"]) == (local_gpus() > 1)
    for curve in found["curves"].values():
        assert all(point["seconds"] > 0 for point in curve)
