"""Formats the results as a Markdown page. Missing figures read "not measured"."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autotune.hardware import Device
from benchmarks.on_gpu.prediction import summary
from benchmarks.on_gpu.rows import Row

NOT_MEASURED = "not measured"
Content = Mapping[str, Any]


def markdown(
    content: Content, rows: Sequence[Row], pairs: Sequence[tuple[str, list[str]]], device: Device
) -> str:
    """The page. `rows` and `pairs` (shape, contenders) are all planned measurements."""
    parts = [
        f"# {device.name}",
        _environment(content, device),
        "## Throughput of one device",
        "Step time is the median of the measured steps; MFU counts 6 N + 12 L h s FLOPs per token, "
        "hardware FLOPs also recomputation; memory is the peak in use.",
        _table(
            ("row", "layers", "outcome", "step s", "MFU", "hardware FLOPs", "memory GiB"),
            [_throughput(row, content["throughput"].get(row.name)) for row in rows],
        ),
        "## Compared with Hugging Face's Llama in plain PyTorch",
        "The same shapes on the same device; step times in seconds. Ours uses DeepSpeed.",
        _side_by_side(content["side_by_side"], pairs),
        "## Curves",
        _curves(content["curves"], device),
        "## Predictions",
        "Predictions of the cost model, with the curves as its only input, for every row above.",
        _predictions(content),
    ]
    return "\n\n".join(parts) + "\n"


def _environment(content: Content, device: Device) -> str:
    facts, versions = content["facts"], content["versions"]
    lines = [f"- device: {(facts or {}).get('name') or NOT_MEASURED} ({device.source})"]
    if facts:
        known = {k: v for k, v in facts.items() if v and k != "name"}
        lines += ["- " + ", ".join(f"{k} {v}" for k, v in known.items())] if known else []
        lines.append("- " + ", ".join(f"{k} {v}" for k, v in versions.items() if v))
    for clocks in content["clocks"]:
        lines.append(f"- clocks: {', '.join(clocks.values()) if clocks else NOT_MEASURED}")
    return "\n".join(lines)


def _throughput(row: Row, result: Content | None) -> list[str]:
    layers = str(row.model.num_hidden_layers)
    if result is None:
        return [row.name, layers, NOT_MEASURED, "", "", "", ""]
    outcome = result["outcome"]
    if outcome not in ("ok", "oom"):
        outcome = f"{outcome}: {result['reason']}"
    return [
        row.name,
        layers,
        outcome,
        _number(result["step_seconds"], ".4f"),
        _number(result["mfu"], ".1%"),
        _number(result["hardware_flops_utilisation"], ".1%"),
        _number(result["peak_memory_gib"], ".2f"),
    ]


def _side_by_side(results: Content, pairs: Sequence[tuple[str, list[str]]]) -> str:
    rows = []
    for shape, contenders in pairs:
        times = {name: results.get(f"{shape}: {name}") for name in contenders}
        worker = _fastest(times, "ours")
        baseline = _fastest(times, "hugging_face")
        ratio = _number(baseline / worker, ".2f") if worker and baseline else NOT_MEASURED
        each = ", ".join(f"{name} {_contender(value)}" for name, value in times.items())
        rows.append([shape, each, ratio])
    return _table(("shape", "step s", "fastest Hugging Face / fastest ours"), rows)


def _contender(value: Content | None) -> str:
    if value is None:
        return NOT_MEASURED
    if value["outcome"] != "ok":
        return str(value["outcome"])
    return f"{value['step_seconds']:.4f}" + (f" ({value['mfu']:.1%})" if value["mfu"] else "")


def _fastest(times: Mapping[str, Content | None], prefix: str) -> float | None:
    ran = [
        value["step_seconds"]
        for name, value in times.items()
        if name.startswith(prefix) and value is not None and value["outcome"] == "ok"
    ]
    return min(ran, default=None)


def _curves(curves: Content, device: Device) -> str:
    if not curves:
        return NOT_MEASURED
    rows = [[name, _described(value)] for name, value in curves.items() if name != "attention"]
    for kernel, curve in curves.get("attention", {}).items():
        rows.append([f"attention {kernel}", _described(curve)])
    peak = device.peak_bf16_tflops or device.peak_fp32_tflops
    return _table(("curve", "measured"), rows) + f"\n\nPeak: {peak} TFLOP/s."


def _described(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name} {_number(number, '.4g')}" for name, number in value.items())
    if "sequence_length" in value[0]:
        points = (f"{p['sequence_length']}: {p['tflops']:.4g}" for p in value)
        return "TFLOP/s by sequence length " + ", ".join(points)
    speeds = sorted(point["tflops"] for point in value)
    middle = speeds[len(speeds) // 2]
    return (
        f"{len(speeds)} products, {speeds[0]:.4g} to {speeds[-1]:.4g} TFLOP/s, median {middle:.4g}"
    )


def _predictions(content: Content) -> str:
    figures = summary(content["prediction"], content["throughput"])
    return _table(
        ("figure", "value", "target"),
        [
            ["rows", _number(figures["rows"], "d"), ""],
            ["rows that ran out of memory", _number(figures["out_of_memory"], "d"), ""],
            ["rows within 15 % of the memory capacity", _number(figures["near_the_edge"], "d"), ""],
            ["step time, median error", _number(figures["step_time_error"], ".1%"), "5 %"],
            ["peak memory, median error", _number(figures["memory_error"], ".1%"), "5 %"],
            ["out of memory, accuracy", _number(figures["oom_right"], ".1%"), "98 %"],
        ],
    )


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)
