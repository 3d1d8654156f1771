"""Benchmark of one GPU: worker throughput, Hugging Face baseline, kernel curves, predictions.

    python benchmarks/gpu.py --out runs/gpu

Takes less than nine minutes (`--minutes`). Each result is written to OUT/results.json at once; a
second call measures only what is missing. OUT/report.md shows the results as tables. OUT/NAME.json
is the device's hardware file with the measured constants. Without a GPU, small sizes run on a CPU.
"""

import datetime
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script, and the project may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
from rich.console import Console

from autotune.calibration.measured_device import measured_device
from autotune.cluster import Cluster
from autotune.errors import InputError
from autotune.hardware import Device, device_named, device_of_accelerator, device_to_json
from autotune.hardware.kernels import MODULES, why_not_installed
from autotune.hardware.local_devices import local_gpus
from autotune.options.command_line import AMOUNT, PATH, command_line
from autotune.options.output import plain_console
from autotune.options.space_options import device_of_option
from autotune.space import precision_on
from autotune.trial.deepspeed_config import worker_environment
from autotune.trial.trial import TrialSpec
from benchmarks.on_gpu import curves, peers
from benchmarks.on_gpu.children import ChildFailed, Children, ChildTookTooLong
from benchmarks.on_gpu.prediction import predict
from benchmarks.on_gpu.report import markdown
from benchmarks.on_gpu.results import Results
from benchmarks.on_gpu.rows import Contender, Planner, Row
from benchmarks.on_gpu.throughput import WARMUP_STEPS, Worker

_CPU_MEMORY_GIB = 0.3
_PEER_SECONDS = 180.0
_CURVE_SECONDS = 120.0
# An item is not started with less time left than this: it would probably not finish.
_RESERVE_SECONDS = {"compiled": 75.0, "others": 15.0}
# A running item is stopped this long after the deadline.
_GRACE_SECONDS = 20.0
# Share of the time at which a section ends. Its remaining items run after the last section.
_SHARES = {"throughput": 0.62, "side_by_side": 0.85, "curves": 1.0}

Item = tuple[str, str, Callable[[], Any]]
"""Section, name, and the function that measures it."""


@click.command()
@click.option("--out", type=PATH, default=Path("runs/gpu"), show_default=True, metavar="DIR")
@click.option(
    "--minutes",
    type=AMOUNT,
    default=8.5,
    show_default=True,
    help="Time limit for the whole benchmark.",
)
@click.option("--full", is_flag=True, help="All combinations instead of a selection (hours).")
@click.option("--device", type=click.Choice(["auto", "gpu", "cpu"]), default="auto")
@click.option(
    "--gpu", metavar="NAME|FILE.json", help="The device, if it is not recognised by its name."
)
@click.option(
    "--report-only", is_flag=True, help="Write the report of existing results; run nothing."
)
def main(
    out: Path, minutes: float, full: bool, device: str, gpu: str | None, report_only: bool
) -> int:
    """Measure this machine's device and write results, report and hardware file to DIR."""
    kind = ("gpu" if local_gpus() else "cpu") if device == "auto" else device
    if gpu is not None:
        kind = device_of_option(gpu).kind
    if not report_only:
        for name, value in worker_environment("gpu" if kind == "gpu" else "cpu").items():
            os.environ.setdefault(name, value)
    children = Children(["torch", "benchmarks.on_gpu.curves"])
    facts = {} if report_only else _facts(children, kind)
    if gpu is not None:
        stated = device_of_option(gpu)
    elif kind == "cpu":
        stated = device_named("cpu")
    elif report_only:
        raise InputError("--report-only needs --gpu, the device that the results are from")
    else:
        stated = _device_by_name(facts["name"])
    try:
        out.mkdir(parents=True, exist_ok=True)
        results = Results(out / "results.json", stated.name)
    except OSError as error:
        raise InputError(f"--out: cannot be written: {error}") from None
    benchmark = Benchmark(out, stated, results, children, plain_console(), full=full)
    try:
        if not report_only:
            benchmark.run(facts, time.monotonic() + 60 * minutes)
    finally:
        benchmark.write()
    return 0


def _facts(children: Children, kind: str) -> dict[str, Any]:
    """The device's properties from torch. Raises InputError if torch cannot use the device."""
    try:
        facts: dict[str, Any] = children.call(
            curves.device_facts, kind, timeout_seconds=_CURVE_SECONDS
        )
        return facts
    except ChildFailed as error:
        raise InputError(f"--device {kind}: torch cannot use it: {error}") from None


def _device_by_name(accelerator: str) -> Device:
    """The device with that CUDA name, such as NVIDIA H200. Raises InputError if unknown."""
    short = accelerator.removeprefix("NVIDIA ").replace("-", " ").split()[0]
    device = device_of_accelerator(short)
    if device.peak_bf16_tflops is None:
        raise InputError(f"{accelerator} has no hardware file: describe it with --gpu FILE.json")
    return device


class Benchmark:
    """Runs all sections on one device."""

    def __init__(
        self,
        out: Path,
        device: Device,
        results: Results,
        children: Children,
        console: Console,
        *,
        full: bool,
    ) -> None:
        self._out, self._device, self._results = out, device, results
        self._children, self._console = children, console
        self._small = device.kind == "cpu"
        self._ends_at = math.inf
        self._memory_gib = _CPU_MEMORY_GIB if self._small else None
        planner = Planner(device, self._memory_gib)
        self._rows = planner.small_rows() if self._small else planner.rows(full=full)
        self._pairs = planner.side_by_side(small=self._small)

    def run(self, facts: dict[str, Any], deadline: float) -> None:
        """Measure the missing items until the deadline (monotonic seconds)."""
        began = time.monotonic()
        self._ends_at = deadline + _GRACE_SECONDS
        self._results.put("facts", facts)
        self._results.note_clocks()
        missing = {kernel: why_not_installed(kernel) for kernel in MODULES}
        with Worker(self._device, self._memory_gib, self._out / "logs") as worker:
            items = list(self._items(worker, missing))
            for section, share in _SHARES.items():
                section_items = [item for item in items if item[0] == section]
                self._measure(section_items, began + share * (deadline - began))
            self._measure(items, deadline)
        self._results.note_clocks()
        left = sum(not self._results.has(section, name) for section, name, _ in items)
        if left:
            self._console.print(
                f"{left} of {len(items)} items are not measured: call again to continue"
            )

    def write(self) -> None:
        """Write the report, and if all curves are there, the hardware file and predictions."""
        content = self._results.content
        measured_curves = _merged_curves(content["curves"])
        if measured_curves is not None:
            source = f"measured by benchmarks/gpu.py, {datetime.date.today()}"
            device = measured_device(self._device, measured_curves, source)
            path = self._out / f"{self._device.name}.json"
            path.write_text(device_to_json(device), "utf-8")
            predictions = predict(device, self._memory_gib, content["throughput"])
            self._results.put("prediction", predictions)
        pairs = [(shape, [name for name, _ in contenders]) for shape, contenders in self._pairs]
        page = markdown(
            content | {"curves": measured_curves or {}}, self._rows, pairs, self._device
        )
        (self._out / "report.md").write_text(page, "utf-8")
        self._console.print(f"wrote {self._out}/report.md", soft_wrap=True)

    def _measure(self, items: list[Item], deadline: float) -> None:
        for section, name, measure in items:
            if self._results.has(section, name):
                continue
            reserve = _RESERVE_SECONDS["compiled" if "compiled" in name else "others"]
            if time.monotonic() + reserve > deadline and not self._small:
                continue
            value = measure()
            if not _should_retry(value):
                self._results.add(section, name, value)
            self._console.print(f"{section}: {name}: {_short(value)}", soft_wrap=True, markup=False)

    def _items(self, worker: Worker, missing: dict[Any, str | None]) -> Iterator[Item]:
        for row in self._rows:
            if reason := missing.get(row.layout.attention_kernel):
                why = f"{row.layout.attention_kernel} {reason}"
                yield "throughput", row.name, lambda row=row, why=why: worker.leave_out(row, why)
            else:
                yield "throughput", row.name, lambda row=row: worker.train(row, self._seconds())
        for shape, contenders in self._pairs:
            shared = contenders[0][1]
            assert shared is not None, "the first contender is a row of this worker"
            for name, row in contenders:
                measure = self._contender(worker, (name, row), shared)
                yield "side_by_side", f"{shape}: {name}", measure
        kind = self._device.kind
        for name, function in (
            ("matrix_products", curves.matrix_products),
            ("bandwidth", curves.bandwidth),
        ):
            yield "curves", name, lambda function=function: self._curve(function, kind)
        for kernel in self._device.attention_kernels:
            if missing.get(kernel) is None and kernel != "math":
                name = f"attention {kernel}"
                yield (
                    "curves",
                    name,
                    lambda kernel=kernel: self._curve(curves.attention, kind, kernel),
                )
        facts = self._results.content["facts"]
        yield "curves", "overheads", lambda: _value_or_reason(lambda: worker.overheads(facts))

    def _contender(
        self, worker: Worker, contender: Contender, shared: Row
    ) -> Callable[[], dict[str, Any]]:
        name, row = contender
        if row is not None:
            return lambda: worker.train(row, self._seconds())
        spec = TrialSpec(
            trial_id=name,
            layout=shared.layout,
            model=shared.model,
            cluster=Cluster(nodes=1, gpus_per_node=1, device=self._device),
            precision=precision_on(self._device.kind),
            warmup_steps=WARMUP_STEPS,
            measured_steps=3,
            log_dir=None,
            synthetic_data=True,
        )
        return lambda: self._peer(name, spec)

    def _peer(self, name: str, spec: TrialSpec) -> dict[str, Any]:
        try:
            result: dict[str, Any] = self._children.call(
                peers.train, name, spec, timeout_seconds=min(_PEER_SECONDS, self._seconds())
            )
            return result
        except ChildTookTooLong as error:
            return {"outcome": "timeout", "reason": str(error), "step_seconds": None, "mfu": None}
        except ChildFailed as error:
            outcome = "oom" if str(error).startswith("OutOfMemoryError") else "crashed"
            return {"outcome": outcome, "reason": str(error), "step_seconds": None, "mfu": None}

    def _curve(self, function: Callable[..., Any], *args: Any) -> Any:
        call = self._children.call
        limit = min(_CURVE_SECONDS, self._seconds())
        return _value_or_reason(lambda: call(function, *args, timeout_seconds=limit))

    def _seconds(self) -> float:
        """Time limit for an item that starts now."""
        return max(1.0, self._ends_at - time.monotonic())


def _value_or_reason(measure: Callable[[], Any]) -> Any:
    try:
        return measure()
    except ChildFailed as error:
        return f"not measured: {error}"


def _merged_curves(measured: dict[str, Any]) -> dict[str, Any] | None:
    """The curves, attention's in one dictionary; None if a required curve is missing."""
    needed = ("matrix_products", "bandwidth", "overheads")
    if any(not isinstance(measured.get(name), list | dict) for name in needed):
        return None
    prefix = "attention "
    attention = {
        name.removeprefix(prefix): curve for name, curve in measured.items() if prefix in name
    }
    return {**{name: measured[name] for name in needed}, "attention": attention}


def _should_retry(value: Any) -> bool:
    """Whether the next call should measure it again: a timeout, or a curve that failed."""
    return isinstance(value, str) or (isinstance(value, dict) and value.get("outcome") == "timeout")


def _short(value: Any) -> str:
    if isinstance(value, dict) and "outcome" in value:
        seconds, mfu = value["step_seconds"], value.get("mfu")
        figures = "" if seconds is None else f" {seconds:.4f} s"
        figures += "" if mfu is None else f", MFU {mfu:.1%}"
        return f"{value['outcome']}{figures} {value.get('reason') or ''}".strip()
    return value if isinstance(value, str) else "measured"


if __name__ == "__main__":
    sys.exit(command_line(main))
