"""Prints what a probe measured: one line per curve, with its ends and the line through it."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from autotune.calibration.probed import Probed

_MOST_POINTS = 4
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_PLACES = {"within": "within nodes", "between": "between nodes", "all": "all ranks"}


def print_probed(console: Console, probed: Probed) -> None:
    """Print the tables of devices and of collectives."""
    device = Table(title="Devices, measured on all at once")
    device.add_column("operation", no_wrap=True)
    device.add_column("reached, by size")
    for operation, gb_per_second in probed.bandwidths.items():
        device.add_row(f"memory: {operation}", f"{gb_per_second:.4g} GB/s")
    device.add_row("matrix products", _products(probed.curves["matrix_products"]))
    for kernel, curve in probed.attention.items():
        shown = "  ".join(
            f"{point['sequence_length']}: {point['tflops']:.3g} TFLOP/s" for point in curve
        )
        device.add_row(f"attention: {kernel}", shown)
    for curve_name, reason in probed.errors.items():
        device.add_row(curve_name, f"not measured further: {reason}")
    console.print(device)
    network = Table(title=f"Collectives by {probed.library}: size, time, GB/s sent per rank")
    for heading in ("operation", "ranks"):
        network.add_column(heading, no_wrap=True)
    network.add_column("curve")
    network.add_column("latency", justify="right", no_wrap=True)
    network.add_column("GB/s", justify="right", no_wrap=True)
    lines = probed.lines()
    for name, curve in probed.collectives.items():
        operation, place = name.split()
        line = lines[name]
        network.add_row(
            f"{operation.replace('_', '-')} {_PLACES[place]}",
            str(curve[0]["ranks"]),
            "  ".join(map(_point, _some(curve))),
            _seconds(line["latency_seconds"]),
            f"{line['bytes_per_second'] / 1e9:.3g}",
        )
    if lines:
        console.print(network)


def _products(curve: Sequence[dict[str, Any]]) -> str:
    rates = sorted(point["tflops"] for point in curve)
    sizes = sorted(2 * p["rows"] * p["columns"] * p["inner"] for p in curve)
    return (
        f"{len(curve)} of {sizes[0]:.2g} to {sizes[-1]:.2g} FLOPs: {rates[0]:.3g} to "
        f"{rates[-1]:.3g} TFLOP/s, median {rates[len(rates) // 2]:.3g}"
    )


def _some(curve: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few points, the first and the last among them."""
    last = len(curve) - 1
    count = min(_MOST_POINTS, len(curve))
    return [curve[round(number * last / max(1, count - 1))] for number in range(count)]


def _point(point: dict[str, Any]) -> str:
    return f"{_size(point['bytes'])}: {_seconds(point['seconds'])}, {point['gb_per_second']:.3g}"


def _size(count: int) -> str:
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} B"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"
