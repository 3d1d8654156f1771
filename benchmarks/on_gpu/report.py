"""The results as a page that people read. What is not there is "not measured"."""

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
    """The page. `rows` and `pairs` are what was to be measured: (shape, contenders)."""
    parts = [
        f"# {device.name}",
        _circumstances(content, device),
        "## Throughput of one device",
        "Step time is the median of the measured steps; MFU counts 6 N + 12 L h s FLOPs per token, "
        "hardware FLOPs what is executed; memory is the peak in use.",
        _table(
            ("row", "layers", "outcome", "step s", "MFU", "hardware FLOPs", "memory GiB"),
            [_throughput(row, content["throughput"].get(row.name)) for row in rows],
        ),
        "## Beside Hugging Face's Llama in plain PyTorch",
        "The same shape, one after the other; step times in seconds. Ours is with DeepSpeed.",
        _side_by_side(content["side_by_side"], pairs),
        "## Curves",
        _curves(content["curves"], device),
        "## Predictions",
        "The cost model with the curves as its only input, against every row above.",
        _predictions(content),
    ]
    return "\n\n".join(parts) + "\n"


def _circumstances(content: Content, device: Device) -> str:
    facts, versions = content["facts"], content["versions"]
    lines = [f"- device: {(facts or {}).get('name') or NOT_MEASURED} ({device.source})"]
    if facts:
        known = {k: v for k, v in facts.items() if v and k != "name"}
        lines += ["- " + ", ".join(f"{k} {v}" for k, v in known.items())] if known else []
        lines.append("- " + ", ".join(f"{k} {v}" for k, v in versions.items() if v))
    for read in content["clocks"]:
        lines.append(f"- clocks: {', '.join(read.values()) if read else NOT_MEASURED}")
    return "\n".join(lines)


def _throughput(row: Row, found: Content | None) -> list[str]:
    layers = str(row.model.num_hidden_layers)
    if found is None:
        return [row.name, layers, NOT_MEASURED, "", "", "", ""]
    outcome = found["outcome"]
    if outcome not in ("ok", "oom"):
        outcome = f"{outcome}: {found['reason']}"
    return [
        row.name,
        layers,
        outcome,
        _number(found["step_seconds"], ".4f"),
        _number(found["mfu"], ".1%"),
        _number(found["hardware_flops_utilisation"], ".1%"),
        _number(found["peak_memory_gib"], ".2f"),
    ]


def _side_by_side(found: Content, pairs: Sequence[tuple[str, list[str]]]) -> str:
    rows = []
    for shape, contenders in pairs:
        times = {name: found.get(f"{shape}: {name}") for name in contenders}
        ours = _fastest(times, "ours")
        theirs = _fastest(times, "hugging_face")
        ratio = _number(theirs / ours, ".2f") if ours and theirs else NOT_MEASURED
        each = ", ".join(f"{name} {_contender(value)}" for name, value in times.items())
        rows.append([shape, each, ratio])
    return _table(("shape", "step s", "fastest of theirs / fastest of ours"), rows)


def _contender(value: Content | None) -> str:
    if value is None:
        return NOT_MEASURED
    if value["outcome"] != "ok":
        return str(value["outcome"])
    return f"{value['step_seconds']:.4f}" + (f" ({value['mfu']:.1%})" if value["mfu"] else "")


def _fastest(times: Mapping[str, Content | None], whose: str) -> float | None:
    ran = [
        value["step_seconds"]
        for name, value in times.items()
        if name.startswith(whose) and value is not None and value["outcome"] == "ok"
    ]
    return min(ran, default=None)


def _curves(curves: Content, device: Device) -> str:
    if not curves:
        return NOT_MEASURED
    rows = [[name, _described(value)] for name, value in curves.items() if name != "attention"]
    for kernel, curve in curves.get("attention", {}).items():
        rows.append([f"attention {kernel}", _described(curve)])
    peak = device.peak_bf16_tflops or device.peak_fp32_tflops
    return _table(("what", "found"), rows) + f"\n\nPeak: {peak} TFLOP/s."


def _described(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name} {_number(some, '.4g')}" for name, some in value.items())
    if "sequence_length" in value[0]:
        points = (f"{p['sequence_length']}: {p['tflops']:.4g}" for p in value)
        return "TFLOP/s by sequence length " + ", ".join(points)
    speeds = sorted(point["tflops"] for point in value)
    middle = speeds[len(speeds) // 2]
    return (
        f"{len(speeds)} products, {speeds[0]:.4g} to {speeds[-1]:.4g} TFLOP/s, median {middle:.4g}"
    )


def _predictions(content: Content) -> str:
    found = summary(content["prediction"], content["throughput"])
    return _table(
        ("what", "found", "target"),
        [
            ["rows", _number(found["rows"], "d"), ""],
            ["of them out of memory", _number(found["out_of_memory"], "d"), ""],
            ["within 15 % of the memory's edge", _number(found["near_the_edge"], "d"), ""],
            ["step time, median error", _number(found["step_time_error"], ".1%"), "5 %"],
            ["peak memory, median error", _number(found["memory_error"], ".1%"), "5 %"],
            ["out of memory or not: right", _number(found["oom_right"], ".1%"), "98 %"],
        ],
    )


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)
