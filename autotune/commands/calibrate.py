"""`autotune calibrate`: fit the cost model to runs, and write a hardware or a trainer file."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from autotune.calibration.fit import (
    accuracy,
    before_any_fit,
    constants_before_any_fit,
    fit,
    leave_one_out,
)
from autotune.calibration.fitted_trainer import fit_trainer
from autotune.calibration.recorded_runs import (
    RecordedRun,
    Sweep,
    read_sweeps,
)
from autotune.cost.constants import (
    Constants,
    bounds_of,
    known_constants,
)
from autotune.cost.trainers import (
    constants_for,
    known_trainers,
    trainer_content,
    trainer_of,
    trainer_to_json,
)
from autotune.errors import InputError, in_field
from autotune.hardware import Device, Measured, Stated, device_to_json, known_devices
from autotune.inputs import SMALLEST_AMOUNT, shown
from autotune.options.command_line import PATH
from autotune.options.names import DEVICE
from autotune.options.output import plain_console
from autotune.options.space_options import device_of_option
from autotune.output_paths import refuse_impossible_file
from autotune.store.files import write_atomically
from autotune.store.record import TrialRecord
from autotune.store.run_directory import open_run
from autotune.trial.trial import Outcome

_ACCURACY_COLUMNS = ("rows", "time error", "OOM F1", "Spearman")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    type=PATH,
    metavar="FILE.json",
    help="Hardware file to write; the default is NAME.json for the runs' device.",
)
@click.option(
    "--gpu", type=DEVICE, metavar="NAME|FILE.json", help="Device whose figures to start from."
)
@click.option(
    "--trainer-out",
    type=PATH,
    metavar="FILE.json",
    help="Trainer file to write, of your training code, in place of a hardware file.",
)
@click.option("--trainer-name", metavar="NAME", help="Its name; the default is that of the file.")
def main(
    runs: Sequence[Path],
    out: Path | None,
    gpu: str | None,
    trainer_out: Path | None,
    trainer_name: str | None,
) -> int:
    """Fit the cost model's constants to RUNS: run directories, or recorded CSV and .xlsx files."""
    if trainer_out is not None and out is not None:
        raise InputError("cannot be given with --trainer-out", field="out")
    if trainer_out is None and trainer_name is not None:
        raise InputError("must be given with --trainer-out and only then", field="trainer_name")
    sweeps = [sweep for path in runs for sweep in sweeps_of(path)]
    names = collections.Counter(sweep.name for sweep in sweeps)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise InputError(f"each sweep must be given once, got {repeated[0]} more than once")
    device = _device(sweeps) if gpu is None else device_of_option(gpu)
    sweeps = [
        dataclasses.replace(s, cluster=dataclasses.replace(s.cluster, device=device))
        for s in sweeps
    ]
    trainer = trainer_of(sweeps[0].trainer)
    _only({trainer_of(sweep.trainer).name for sweep in sweeps}, "trainer")
    _only({sweep.cluster.links.name for sweep in sweeps}, "network")
    if not any(run.outcome in (Outcome.OK, Outcome.OOM) for s in sweeps for run in s.runs):
        raise InputError("the runs must have a layout that ran or ran out of memory, got none")
    if trainer_out is not None:
        name = trainer_out.stem if trainer_name is None else trainer_name
        return _fit_trainer(sweeps, trainer_out, name)
    if trainer.name not in known_trainers():
        raise InputError(
            f"must be given where a file describes the trainer of the runs, got {trainer.name}",
            field="trainer_out",
        )
    out = out or Path(f"{device.name}.json")
    _refuse_unwritable(out, "out")
    before = constants_before_any_fit(sweeps[0].cluster, trainer)
    console = plain_console()
    fitted = fit(sweeps)
    if len(sweeps) > 1:
        after: Mapping[str, Constants] = leave_one_out(sweeps)
        how = "fitted on the other sweeps"
    else:
        after, how = {sweeps[0].name: fitted}, "fitted on itself"
    source = f"fitted on {_described(sweeps)}"
    calibrated = with_constants(device, trainer.name, before, fitted, source)
    _write(out, device_to_json(calibrated), "out")
    _print(console, sweeps, dict.fromkeys(after, before), sweeps, after, f"before any fit → {how}")
    console.print(f"wrote {out}; use it with --gpu {out}", soft_wrap=True)
    return 0


def sweeps_of(path: Path) -> list[Sweep]:
    """The sweeps of a run directory, or of files of recorded runs. Raises InputError."""
    if not (path / "run.json").exists():
        return read_sweeps(path)
    with in_field("runs"):
        store = open_run(path)
    if store.request.simulated:
        raise InputError(
            f"run {shown(path)} must be measured to calibrate from, got {store.request.trainable} "
            "trials"
        )
    runs = [
        _recorded(record)
        for record in store.trials()
        if record.purpose != "confirm" and record.outcome in (Outcome.OK, Outcome.OOM)
    ]
    if not any(run.step_seconds for run in runs):
        raise InputError(f"run {shown(path)} must have a layout that ran, got none")
    space = store.request.space
    return [
        Sweep(
            name=str(path),
            model=space.model,
            precision=space.precision,
            cluster=space.cluster,
            trainer=store.request.description.trainer,
            runs=tuple(runs),
        )
    ]


def _fit_trainer(sweeps: Sequence[Sweep], out: Path, name: str) -> int:
    """Fit a trainer of the user's, write its file, and print the accuracy on runs left out."""
    _refuse_unwritable(out, "trainer_out")
    if name in known_trainers():
        raise InputError(f"must not be a known trainer's, got {shown(name)}", field="trainer_name")
    with in_field("trainer_name"):
        trainer_of({**trainer_content(trainer_of(sweeps[0].trainer)), "name": name})
    fitted = fit_trainer(sweeps, name=name, source=f"fitted on {_described(sweeps)}")
    _write(out, trainer_to_json(fitted.trainer), "trainer_out")
    console = plain_console()
    stated = sweeps[0].trainer
    cluster = sweeps[0].cluster
    names = [sweep.name for sweep in fitted.left_out]
    _print(
        console,
        [dataclasses.replace(sweep, trainer=stated) for sweep in fitted.left_out],
        dict.fromkeys(names, constants_for(cluster.device, stated, cluster.network)),
        fitted.left_out,
        dict.fromkeys(names, fitted.on_half),
        f"{trainer_of(stated).name} → fitted on the other half of the runs",
    )
    console.print(
        f"wrote {out}: it sends and hides what {fitted.resembles} does; use it with --trainer "
        f'{out}, or trainer = "{out.name}" in the file of your command',
        soft_wrap=True,
    )
    return 0


def _write(out: Path, text: str, field: str) -> None:
    try:
        write_atomically(out, lambda path: path.write_text(text, "utf-8"))
    except OSError as error:
        raise InputError(f"cannot write {shown(out)}: {error.strerror}", field=field) from None


def _refuse_unwritable(out: Path, field: str) -> None:
    """Raise InputError where `out` cannot be written, so that no fit is lost."""
    if out.suffix != ".json":
        raise InputError(f"must be a file NAME.json, got {shown(out)}", field=field)
    with in_field(field):
        refuse_impossible_file(out)


def with_constants(
    device: Device,
    trainer: str,
    before: Constants,
    fitted: Constants,
    source: str,
) -> Device:
    """The device with these fitted constants instead of those of earlier fits.

    Constants that the fit did not change from `before` keep their source.
    """
    known = known_constants()
    stated = before_any_fit(device)
    of_hardware = dict(stated.constants)
    of_trainer = dict(stated.trainers.get(trainer, {}))
    for name, value in fitted.items():
        if abs(value / before[name] - 1) < 1e-3 if before[name] else value == before[name]:
            continue
        group = of_trainer if known[name].of == "trainer" else of_hardware
        old = group.get(name)
        unfitted = old and Stated(value=old.value, kind=old.kind, source=old.source)
        lower, upper = bounds_of(name)
        rounded = float(f"{min(max(value, lower), upper):.4g}")
        group[name] = Measured(value=rounded, kind="fitted", source=source, unfitted=unfitted)
    return dataclasses.replace(
        device, constants=of_hardware, trainers={**device.trainers, trainer: of_trainer}
    )


def _recorded(record: TrialRecord) -> RecordedRun:
    seconds = record.measurement.step_seconds if record.outcome is Outcome.OK else None
    peak = record.measurement.peak_memory_gib if record.outcome is Outcome.OK else None
    if peak is not None and peak < SMALLEST_AMOUNT:
        peak = None  # as good as not measured
    return RecordedRun(
        layout=record.layout, outcome=record.outcome, step_seconds=seconds, peak_memory_gib=peak
    )


def _device(sweeps: Sequence[Sweep]) -> Device:
    """The device of the runs, from today's hardware files; else as the runs recorded it."""
    devices = {sweep.cluster.device.name: sweep.cluster.device for sweep in sweeps}
    name = _only(set(devices), "device")
    return known_devices().get(name, devices[name])


def _only(values: set[str], what: str) -> str:
    if len(values) > 1:
        raise InputError(f"all runs must have one {what}, got {', '.join(sorted(values))}")
    return values.pop()


def _described(sweeps: Sequence[Sweep]) -> str:
    outcomes = collections.Counter(run.outcome for sweep in sweeps for run in sweep.runs)
    names = ", ".join(sweep.name for sweep in sweeps)
    ran, ran_out = outcomes[Outcome.OK], outcomes[Outcome.OOM]
    return f"{ran} layouts that ran and {ran_out} that ran out of memory: {names}"


def _print(
    console: Console,
    sweeps: Sequence[Sweep],
    before: Mapping[str, Constants],
    sweeps_after: Sequence[Sweep],
    after: Mapping[str, Constants],
    what: str,
) -> None:
    """Accuracy on each sweep by the constants and the trainer before, and by those after."""
    table = Table(title=f"Accuracy of predictions: {what}")
    table.add_column("sweep")
    for heading in _ACCURACY_COLUMNS:
        table.add_column(heading, justify="right")
    for sweep, sweep_after in zip(sweeps, sweeps_after, strict=True):
        old = accuracy(sweep, before[sweep.name])
        new = accuracy(sweep_after, after[sweep.name])
        table.add_row(
            sweep.name,
            str(new.rows),
            f"{_percent(old.step_time_mape)} → {_percent(new.step_time_mape)}",
            f"{_number(old.oom_f1)} → {_number(new.oom_f1)}",
            f"{_number(old.spearman)} → {_number(new.spearman)}",
        )
    console.print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
