"""Turns curves of operations, each measured alone, into constants of the device's hardware file.

Nothing is fitted to step times."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autotune.cost.constants import known_constants
from autotune.cost.matrix_products import tile_efficiency
from autotune.cost.trainers import assumed_constants
from autotune.hardware import Device, Measured, Stated

# Constant of memory traffic -> the bandwidth measurements that it is scaled by.
_TRAFFIC = {
    "residual_traffic": ("rms_norm", "add"),
    "rotation_traffic": ("rotation",),
    "gate_traffic": ("gate",),
    "loss_traffic": ("loss",),
    "optimizer_traffic": ("optimizer",),
}
_LONGEST_HALF_LENGTH = 65_536.0
# The smallest step is bound by the host; in a large step, GPU work hides that time.
_WHY_ASSUMED = "kernel launches overlap GPU work; allocator uses expandable segments"
_ASSUMED = {"step_seconds": 0.0, "launch_seconds": 0.0, "pressure": 0.0, "fragmentation": 0.01}


def measured_device(stated: Device, curves: Mapping[str, Any], source: str) -> Device:
    """The device with measured constants in place of those that were stated or assumed.

    `curves`: lists of points of ``matrix_products`` and, by kernel, of ``attention``; GB/s by
    operation in ``bandwidth``; and ``overheads``, as far as they are known. Raises KeyError if a
    required curve is missing.
    """
    bandwidth = curves["bandwidth"]
    device = dataclasses.replace(stated, memory_gb_per_second=_rounded(bandwidth["copy"]))
    if stated.kind == "gpu":
        device = _with_constants(device, _ASSUMED, f"assumed: {_WHY_ASSUMED}")
    overheads = curves.get("overheads", {})
    peak_tflops = stated.peak_bf16_tflops or stated.peak_fp32_tflops
    assert peak_tflops is not None
    constants = {
        "gemm_efficiency": _gemm_efficiency(curves["matrix_products"], device, peak_tflops)
    }
    if stated.kind == "cpu" and "step_seconds" in overheads:
        constants["step_seconds"] = overheads["step_seconds"]
    if overheads.get("context_gib"):
        constants["context_gib"] = overheads["context_gib"]
    if overheads.get("usable_memory"):
        constants["usable_memory"] = overheads["usable_memory"]
    counted = assumed_constants("deepspeed_llm")
    for name, parts in _TRAFFIC.items():
        achieved = statistics.harmonic_mean(bandwidth[part] for part in parts)
        constants[name] = counted[name] * bandwidth["copy"] / achieved
    for kernel, curve in curves["attention"].items():
        writes_scores = f"attention.{kernel}.score_traffic"
        if not isinstance(curve, list):
            continue
        if counted[writes_scores] > 0:
            constants[writes_scores] = _score_traffic(curve, device, peak_tflops, kernel)
        else:
            efficiency, half_length = saturation(curve, peak_tflops)
            constants[f"attention.{kernel}.efficiency"] = efficiency
            constants[f"attention.{kernel}.half_length"] = half_length
    return _with_constants(device, constants, source)


def _gemm_efficiency(
    products: Sequence[Mapping[str, float]], device: Device, peak_tflops: float
) -> float:
    """Median fraction of the peak FLOP/s, after dividing out the tile and wave efficiency."""
    assert device.multiprocessors is not None
    rows, columns = (np.array([p[name] for p in products]) for name in ("rows", "columns"))
    tiles = tile_efficiency(rows, columns, device.multiprocessors)
    shares = np.array([p["tflops"] for p in products]) / peak_tflops / tiles
    return float(np.median(shares))


def saturation(curve: Sequence[Mapping[str, float]], peak_tflops: float) -> tuple[float, float]:
    """(efficiency, half_length): share of the peak = efficiency * length / (length + half_length).

    A linear fit of 1/share over 1/length, each point weighted by its share.
    """
    lengths = np.array([point["sequence_length"] for point in curve], dtype=float)
    shares = np.array([point["tflops"] for point in curve]) / peak_tflops
    if len(lengths) < 2:
        return float(shares[0]), 0.0
    slope, intercept = np.polyfit(1 / lengths, 1 / shares, 1, w=shares)
    if slope <= 0 or intercept <= 0:  # no saturation in the measured range
        return float(np.median(shares)), 0.0
    return float(1 / intercept), float(min(slope / intercept, _LONGEST_HALF_LENGTH))


def _score_traffic(
    curve: Sequence[Mapping[str, float]], device: Device, peak_tflops: float, kernel: str
) -> float:
    """Memory traffic in bytes per score (in bf16) of attention that writes its scores: from the
    time that the matrix products leave, at least half of all.

    Both parts grow with the scores, so curves cannot tell the efficiency of the products; the one
    that the cost model assumes is taken.
    """
    efficiency = known_constants()[f"attention.{kernel}.efficiency"].value
    element_scale = 1 if device.kind == "gpu" else 2
    assert device.memory_gb_per_second is not None
    found = []
    for point in curve:
        # Two products forward and four backward, over all scores.
        flops = (2 + 4) * 2 * point["scores"] * point["head_size"]
        products = flops / (efficiency * peak_tflops * 1e12)
        written = max(point["seconds"] - products, point["seconds"] / 2)
        traffic = written * device.memory_gb_per_second * 1e9
        found.append(traffic / point["scores"] / element_scale)
    return float(np.median(found))


def completed(
    device: Device, facts: Mapping[str, Any], products: Sequence[Mapping[str, float]]
) -> Device:
    """The device with figures that its file leaves open, where the device itself tells them.

    Without a data sheet, the fastest matrix product stands for the peak.
    """
    changes: dict[str, Any] = {}
    if device.memory_gib is None and facts["total_memory_gib"]:
        changes["memory_gib"] = _rounded(facts["total_memory_gib"])
    if device.multiprocessors is None and facts["multiprocessors"]:
        changes["multiprocessors"] = facts["multiprocessors"]
    if device.peak_bf16_tflops is None and device.peak_fp32_tflops is None:
        changes["peak_bf16_tflops"] = _rounded(max(point["tflops"] for point in products))
        changes["source"] = f"{device.source}; the peak is that of the fastest matrix product"
    return dataclasses.replace(device, **changes)


def _with_constants(device: Device, found: Mapping[str, float], source: str) -> Device:
    known = known_constants()
    of_hardware = dict(device.constants)
    of_trainer = dict(device.trainers.get("deepspeed_llm", {}))
    for name, value in found.items():
        group = of_trainer if known[name].of == "trainer" else of_hardware
        # A fit to a trainer's runs, which would go before the constant of the hardware.
        there = of_trainer.pop(name, None) or group.get(name)
        unfitted = there and Stated(value=there.value, kind=there.kind, source=there.source)
        group[name] = Measured(
            value=_rounded(value), kind="stated", source=source, unfitted=unfitted
        )
    trainers = {**device.trainers, "deepspeed_llm": of_trainer}
    return dataclasses.replace(device, constants=of_hardware, trainers=trainers)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
