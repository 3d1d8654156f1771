"""Constants are found again from the runs that they made, and fits are judged by hand."""

import csv
import dataclasses
import datetime
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.calibration.fit import (
    accuracy,
    before_any_fit,
    fit,
    leave_one_out,
    network_before_any_fit,
)
from autotune.calibration.recorded_runs import RecordedRun, Sweep, read_sweeps
from autotune.cluster import Cluster
from autotune.commands.calibrate import main, with_constants
from autotune.cost.constants import known_constants
from autotune.cost.model import CostModel
from autotune.cost.trainers import assumed_constants, constants_for
from autotune.errors import InputError
from autotune.hardware import (
    Device,
    Measured,
    device_from_json,
    device_named,
    device_to_json,
    network_named,
)
from autotune.layout import Layout
from autotune.named_spaces import load_space
from autotune.options.command_line import command_line
from autotune.store.record import TrialRecord
from autotune.store.run_directory import RunStore
from autotune.trial.measurement import Measurement
from autotune.trial.trial import Outcome
from tests.autotune.simulate import new_store
from tests.conftest import REPOSITORY

PAPER_RUNS = REPOSITORY.parent / "shared" / "paper_runs"

# Without constants, so that a fit starts from what is assumed where nothing was measured.
A100 = dataclasses.replace(device_named("a100-80gb"), constants={}, trainers={})
SPACE = load_space("llm13b").restricted(
    {
        "zero_stage": [1],
        "micro_batch_size": [1, 2, 4],
        "activation_checkpointing": ["none", "full"],
        "attention_kernel": ["math", "flash_attn"],
        "rmsnorm_kernel": ["fused"],
    }
)
MODEL = dataclasses.replace(SPACE.model, precision="bf16")
NETWORK = network_before_any_fit(network_named("hagemann2023"))
CLUSTER = Cluster(nodes=8, gpus_per_node=8, device=A100, network=NETWORK)
LAYOUTS = [
    dataclasses.replace(
        layout, attention_kernel="math" if layout.attention_kernel == "math" else "flash2"
    )
    for layout in SPACE.layouts()
]
ASSUMED = constants_for(A100, "hagemann2023", NETWORK)
TRUE = {
    **ASSUMED,
    "gemm_efficiency": 0.85 * ASSUMED["gemm_efficiency"],
    "link_efficiency": 1.15 * ASSUMED["link_efficiency"],
    "sharded_activations": 1.3 * ASSUMED["sharded_activations"],
}


def model_of(constants: Mapping[str, float]) -> CostModel:
    return CostModel(MODEL, "bf16", CLUSTER, trainer="hagemann2023", constants=constants)


def made_by(
    constants: Mapping[str, float], layouts: Sequence[Layout], *, name: str = "synthetic"
) -> Sweep:
    """What a sweep over the layouts would be if the model were true."""
    found = model_of(constants).estimate(layouts)
    runs = [
        RecordedRun(
            layout=layout,
            outcome=Outcome.OK if fits > 0.5 else Outcome.OOM,
            step_seconds=float(seconds) if fits > 0.5 else None,
        )
        for layout, seconds, fits in zip(
            layouts, found.step_seconds, found.fit_probability, strict=True
        )
    ]
    return sweep_of(runs, name=name)


def sweep_of(runs: Sequence[RecordedRun], *, name: str = "synthetic") -> Sweep:
    return Sweep(
        name=name,
        model=MODEL,
        precision="bf16",
        cluster=CLUSTER,
        trainer="hagemann2023",
        runs=tuple(runs),
    )


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return made_by(TRUE, LAYOUTS[::5])


@pytest.fixture(scope="module")
def fitted(sweep: Sweep) -> dict[str, float]:
    return fit([sweep])


def errors(constants: Mapping[str, float], sweep: Sweep) -> Any:
    predicted = model_of(constants).estimate([run.layout for run in sweep.timed]).step_seconds
    return np.abs(predicted / np.array([run.step_seconds for run in sweep.timed]) - 1)


def test_the_sweep_is_small_and_has_both_outcomes(sweep: Sweep) -> None:
    assert len(sweep.timed) > 40
    assert len(sweep.runs) - len(sweep.timed) > 5
    assert errors(ASSUMED, sweep).mean() > 0.05


def test_fitted_constants_predict_what_the_fit_has_not_seen(fitted: dict[str, float]) -> None:
    seen = set(LAYOUTS[::5])
    others = made_by(TRUE, [layout for layout in LAYOUTS if layout not in seen])
    assert len(others.timed) > 150
    assert errors(fitted, others).max() < 0.02


def test_a_fit_improves_the_accuracy(sweep: Sweep, fitted: dict[str, float]) -> None:
    before, after = accuracy(sweep, ASSUMED), accuracy(sweep, fitted)
    assert before.step_time_mape is not None and before.step_time_mape > 0.05
    assert after.step_time_mape is not None and after.step_time_mape < 0.01
    assert before.oom_f1 is not None and before.oom_f1 < 1
    assert after.oom_f1 == 1
    assert after.spearman is not None and after.spearman > 0.999


def test_the_constants_that_moved_are_found(fitted: dict[str, float]) -> None:
    for name, tolerance in (("gemm_efficiency", 0.02), ("link_efficiency", 0.05)):
        assert fitted[name] == pytest.approx(TRUE[name], rel=tolerance)


def test_constants_that_runs_say_nothing_about_stay(fitted: dict[str, float]) -> None:
    assert fitted.keys() == ASSUMED.keys()
    for name in (
        "compiled_traffic",
        "overlap",
        "usable_memory",
        "plain_norm_traffic",
        "plain_norm_activations",
        "attention.megatron.score_bytes",
        "attention.flash1.efficiency",
    ):
        assert fitted[name] == pytest.approx(ASSUMED[name], rel=1e-3), name
    for name, constant in known_constants().items():
        if constant.spread and ASSUMED[name]:
            moved = abs(np.log(fitted[name] / ASSUMED[name])) / constant.spread
            assert moved < 3, name


def test_without_noise_the_spreads_are_the_smallest_that_are_believed(
    fitted: dict[str, float],
) -> None:
    assert fitted["time_spread"] == 0.01
    assert fitted["memory_spread"] == 0.03


def test_a_fit_is_deterministic(sweep: Sweep, fitted: dict[str, float]) -> None:
    assert fit([sweep]) == fitted


def test_a_fit_starts_from_what_was_known_before_any_fit(
    sweep: Sweep, fitted: dict[str, float]
) -> None:
    def on(constants: dict[str, Measured]) -> Sweep:
        device = dataclasses.replace(A100, constants=constants)
        return dataclasses.replace(sweep, cluster=dataclasses.replace(CLUSTER, device=device))

    earlier = Measured(value=0.5, kind="fitted", source="something else")
    assert fit([on({"gemm_efficiency": earlier})]) == fitted
    measured = Measured(value=1.5, kind="stated", source="a ruler")
    assert fit([on({"compiled_traffic": measured})])["compiled_traffic"] == 1.5


def test_a_wild_run_moves_a_fit_little(sweep: Sweep) -> None:
    wild = sweep.timed[7]
    runs = [
        dataclasses.replace(run, step_seconds=3 * run.step_seconds)
        if run is wild and run.step_seconds is not None
        else run
        for run in sweep.runs
    ]
    found = errors(fit([sweep_of(runs)]), sweep)
    assert np.delete(found, 7).max() < 0.03


def test_measured_peaks_are_fitted(sweep: Sweep) -> None:
    true = {**TRUE, "context_gib": 1.3 * ASSUMED["context_gib"]}
    layouts = [run.layout for run in sweep.timed]
    peaks = model_of(true).estimate(layouts).peak_memory_gib
    runs = [
        dataclasses.replace(run, peak_memory_gib=float(peak))
        for run, peak in zip(sweep.timed, peaks, strict=True)
    ]
    before = model_of(ASSUMED).estimate(layouts).peak_memory_gib
    after = model_of(fit([sweep_of(runs)])).estimate(layouts).peak_memory_gib
    assert np.abs(before / peaks - 1).max() > 0.05
    assert np.abs(after / peaks - 1).max() < 0.02


def test_runs_that_all_ran_out_of_memory_leave_times_alone(sweep: Sweep) -> None:
    runs = [run for run in sweep.runs if run.step_seconds is None]
    found = fit([sweep_of(runs)])
    for name, constant in known_constants().items():
        if constant.predicts == "time":
            assert found[name] == ASSUMED[name], name


def test_each_sweep_is_judged_by_constants_of_the_others(sweep: Sweep) -> None:
    one, other = (
        made_by(constants, LAYOUTS[start::9], name=name)
        for name, constants, start in (("assumed", ASSUMED, 0), ("true", TRUE, 1))
    )
    found = leave_one_out([one, other])
    assert found == {"assumed": fit([other]), "true": fit([one])}


# Accuracy by hand.


def judged(runs: Sequence[RecordedRun]) -> Any:
    return accuracy(sweep_of(runs), ASSUMED)


def said(*, fits: bool) -> list[Layout]:
    probabilities = model_of(ASSUMED).estimate(LAYOUTS).fit_probability
    return [x for x, fit in zip(LAYOUTS, probabilities, strict=True) if (fit > 0.5) == fits]


def ran_out(layout: Layout) -> RecordedRun:
    return RecordedRun(layout=layout, outcome=Outcome.OOM, step_seconds=None)


def ran(layout: Layout, *, factor: float = 1.0) -> RecordedRun:
    """A run that takes `factor` times as long as predicted."""
    predicted = float(model_of(ASSUMED).estimate([layout]).step_seconds[0])
    return RecordedRun(layout=layout, outcome=Outcome.OK, step_seconds=factor * predicted)


def test_f1_by_hand() -> None:
    too_large, small = said(fits=False), said(fits=True)
    found = judged(
        [
            # Said to run out: two that did, two that did not.
            *map(ran_out, too_large[:2]),
            *map(ran, too_large[2:4]),
            # Said to fit: one that ran out, one that ran; one that failed does not count.
            ran_out(small[0]),
            ran(small[1]),
            RecordedRun(layout=small[2], outcome=Outcome.CRASHED, step_seconds=None),
        ]
    )
    assert (found.rows, found.ok, found.oom) == (7, 3, 3)
    assert found.oom_precision == pytest.approx(2 / 4)
    assert found.oom_recall == pytest.approx(2 / 3)
    # 2 x 1/2 x 2/3 / (1/2 + 2/3)
    assert found.oom_f1 == pytest.approx(4 / 7)


def test_the_mean_error_of_times_by_hand() -> None:
    small = said(fits=True)
    # Predicted over measured: 2, 0.8 and 1.
    found = judged([ran(small[0], factor=0.5), ran(small[1], factor=1.25), ran(small[2])])
    assert found.step_time_mape == pytest.approx((1 + 0.2 + 0) / 3)


def test_the_rank_correlation_by_hand() -> None:
    times = model_of(ASSUMED).estimate(said(fits=True)).step_seconds
    order = [said(fits=True)[place] for place in np.argsort(times)[::20]]
    # Of four layouts the second and the third change places: 1 - 6 (1 + 1) / (4 (16 - 1)).
    runs = [
        RecordedRun(layout=layout, outcome=Outcome.OK, step_seconds=seconds)
        for layout, seconds in zip(order[:4], (1.0, 3.0, 2.0, 4.0), strict=True)
    ]
    assert judged(runs).spearman == pytest.approx(0.8)


def test_what_cannot_be_judged_is_null() -> None:
    small = said(fits=True)
    few = judged([ran(small[0]), ran(small[1])])
    assert (few.oom_f1, few.oom_precision, few.oom_recall, few.spearman) == (None,) * 4
    assert few.step_time_mape == pytest.approx(0)
    none = judged([ran_out(small[0])])
    assert (none.step_time_mape, none.spearman, none.oom_precision) == (None, None, None)
    assert (none.oom_f1, none.oom_recall) == (0, 0)


# The command.


def written(file: Path, sweep: Sweep) -> Path:
    """The sweep as a CSV of recorded runs."""
    rows = [
        {
            "sweep": sweep.name,
            "model": "13B",
            "sequence_length": MODEL.sequence_length,
            "world_size": CLUSTER.devices,
            "global_batch_size": MODEL.global_batch_size,
            "tensor_parallel": run.layout.tensor_parallel,
            "pipeline_parallel": run.layout.pipeline_parallel,
            "data_parallel": run.layout.data_parallel,
            "micro_batch_size": run.layout.micro_batch_size,
            "activation_checkpointing": {"full": "every_layer"}.get(
                run.layout.activation_checkpointing, "none"
            ),
            "sequence_parallel": run.layout.sequence_parallel,
            "attention_kernel": {"math": "torch"}.get(run.layout.attention_kernel, "flash2"),
            "rmsnorm_kernel": True,
            "outcome": run.outcome.value,
            "step_seconds": run.step_seconds,
        }
        for run in sweep.runs
    ]
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return file


def hardware_file(path: Path, device: Device = A100) -> Path:
    path.write_text(device_to_json(device), encoding="utf-8")
    return path


def calibrated(*arguments: object) -> int:
    return command_line(main, [str(argument) for argument in arguments])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert calibrated(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    return shown.err.removeprefix("error: ").rstrip("\n")


def test_the_written_hardware_file_gives_the_fitted_constants(
    tmp_path: Path, sweep: Sweep, fitted: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = written(tmp_path / "runs.csv", sweep), tmp_path / "mine.json"
    assert calibrated(runs, "--gpu", hardware_file(tmp_path / "plain.json"), "--out", out) == 0
    device = device_named(str(out))
    found = constants_for(device, "hagemann2023", NETWORK)
    # Four digits are written, and what moved by less than a thousandth is not.
    assert found == pytest.approx(fitted, rel=1e-3)
    assert dataclasses.replace(device, constants={}, trainers={}) == A100
    ran, out_of_memory = len(sweep.timed), len(sweep.runs) - len(sweep.timed)
    assert device.constants["gemm_efficiency"].source == (
        f"fitted on {ran} layouts that ran and {out_of_memory} that ran out of memory: synthetic"
    )
    assert "attention.flash2.efficiency" in device.constants
    assert "sharded_activations" in device.trainers["hagemann2023"]
    assert "usable_memory" not in device.constants
    shown = capsys.readouterr().out
    assert "fitted on itself" in shown and f"wrote {out}; use it with --gpu {out}" in shown


def test_a_second_calibration_does_not_build_on_the_first(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, start = written(tmp_path / "runs.csv", sweep), hardware_file(tmp_path / "plain.json")
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert calibrated(runs, "--gpu", start, "--out", first) == 0
    assert calibrated(runs, "--gpu", first, "--out", second) == 0
    one, two = (constants_for(device_named(str(file)), "hagemann2023") for file in (first, second))
    assert two == pytest.approx(one, rel=1e-3)


def test_a_second_calibration_starts_where_the_first_did(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = {"stage_efficiency": Measured(value=1, kind="stated", source="as the maker states")}
    start = dataclasses.replace(A100, constants=stated)
    first = tmp_path / "first.json"
    runs = written(tmp_path / "runs.csv", sweep)
    assert (
        calibrated(runs, "--gpu", hardware_file(tmp_path / "start.json", start), "--out", first)
        == 0
    )
    once, twice = (
        fit([dataclasses.replace(sweep, cluster=dataclasses.replace(CLUSTER, device=device))])
        for device in (start, device_named(str(first)))
    )
    assert twice == once


@pytest.mark.parametrize("outcome", ["kernel_na", "error"])
def test_recordings_that_tell_nothing_are_refused(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str], outcome: str
) -> None:
    runs = written(tmp_path / "runs.csv", sweep)
    text = runs.read_text(encoding="utf-8")
    for known in ("ok", "oom"):
        text = text.replace(f",{known},", f",{outcome},")
    runs.write_text(text, encoding="utf-8")
    refusal(capsys, runs)


def test_several_sweeps_are_judged_by_the_others_and_fitted_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps = [made_by(TRUE, LAYOUTS[start::9], name=f"part{start}") for start in (0, 1)]
    for sweep in sweeps:
        written(tmp_path / f"{sweep.name}.csv", sweep)
    out = tmp_path / "mine.json"
    start = hardware_file(tmp_path / "plain.json")
    assert calibrated(tmp_path, "--gpu", start, "--out", out) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "fitted on the other sweeps" in shown and "part0" in shown and "part1" in shown
    found = constants_for(device_named(str(out)), "hagemann2023")
    assert found == pytest.approx(fit(sweeps), rel=1e-3)


def test_the_default_file_is_named_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "runs.csv", made_by(TRUE, LAYOUTS[::20]))
    assert calibrated("runs.csv") == 0
    device = device_named("a100-80gb.json")
    assert (device.name, device.memory_gib) == ("a100-80gb", 80)
    assert device.constants["usable_memory"] == device_named("a100-80gb").constants["usable_memory"]


def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = written(tmp_path / "runs.csv", sweep)
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    unknown = Measured(value=1, kind="stated", source="nowhere")
    wrong = hardware_file(
        tmp_path / "wrong.json", dataclasses.replace(A100, constants={"speed": unknown})
    )
    for arguments, sentence in (
        ((), "Missing argument 'RUNS...'."),
        ((tmp_path / "none.csv",), "RUNS: no such file or folder: "),
        ((hardware_file(tmp_path / "a.json"),), "RUNS must be a .csv or .xlsx file, got "),
        ((runs, "--out", tmp_path / "mine.txt"), "--out must be a file NAME.json, got "),
        (
            (runs, "--out", tmp_path / "none" / "mine.json"),
            "--out must be in a directory that exists, got ",
        ),
        ((runs, "--gpu", "abacus"), "--gpu: device must be one of a100-40gb, "),
        ((runs, "--gpu", bad), f"--gpu: device file {str(bad)!r}: not valid JSON: "),
        ((runs, "--gpu", tmp_path / "no.json"), "--gpu: cannot read "),
        (
            (runs, "--gpu", wrong),
            "hardware a100-80gb: constant must be one of those of constants.json, got 'speed'",
        ),
        ((runs, "--speed", "9"), "No such option"),
    ):
        assert refusal(capsys, *arguments).startswith(sentence)
    assert not list(tmp_path.glob("mine.*"))


def test_a_fit_beyond_what_a_constant_can_be_is_written_as_its_bound() -> None:
    before = constants_for(A100, "hagemann2023")
    fitted = {**before, "overlap": 1.2, "gemm_efficiency": 0.0}
    device = with_constants(A100, "hagemann2023", before, fitted, "a fit")
    found = constants_for(device_from_json(device_to_json(device), what="it"), "hagemann2023")
    assert (found["overlap"], found["gemm_efficiency"]) == (1.0, 1e-9)


def test_a_constant_that_is_not_known_is_refused() -> None:
    device = dataclasses.replace(
        A100, constants={"speed": Measured(value=1, kind="stated", source="nowhere")}
    )
    with pytest.raises(InputError, match="got 'speed'"):
        constants_for(device, "deepspeed_llm")


# Runs of our own.


def trial(number: int, layout: Layout, outcome: Outcome, **measured: float) -> TrialRecord:
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(Measurement))
    moment = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    return TrialRecord(
        trial_id=f"{number:04d}",
        trainable="deepspeed",
        purpose="explore",
        layout=layout,
        outcome=outcome,
        reason="",
        measurement=Measurement(**{**nothing, "measured_steps": 3, **measured}),
        startup_seconds=1.0,
        gpu_seconds=1.0,
        attempts=1,
        started_at=moment,
        finished_at=moment + datetime.timedelta(seconds=number),
    )


def run_of_ours(directory: Path, constants: Mapping[str, float]) -> RunStore:
    space = load_space("tiny")
    cpu = dataclasses.replace(space.cluster.device, constants={}, trainers={})
    space = dataclasses.replace(space, cluster=dataclasses.replace(space.cluster, device=cpu))
    store = new_store(directory, trainable="deepspeed", space=space)
    model = CostModel(space.model, space.precision, space.cluster, constants=constants)
    layouts = space.layouts()[::40]
    found = model.estimate(layouts)
    for number, layout in enumerate(layouts):
        record = trial(
            number,
            layout,
            Outcome.OK,
            step_seconds=float(found.step_seconds[number]),
            peak_memory_gib=float(found.peak_memory_gib[number]),
        )
        store.add_trial(record, [])
    return store


def test_runs_of_our_own_are_calibrated_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assumed = constants_for(before_any_fit(device_named("cpu")), "deepspeed_llm")
    true = {**assumed, "launch_seconds": 2 * assumed["launch_seconds"]}
    store = run_of_ours(tmp_path / "run", true)
    out = tmp_path / "mine.json"
    assert calibrated(store.directory, "--out", out) == 0
    found = device_named(str(out))
    assert str(store.directory) in found.trainers["deepspeed_llm"]["launch_seconds"].source
    space = store.request.space
    before, after, expected = (
        CostModel(space.model, space.precision, space.cluster, constants=constants).estimate(
            space.layouts()
        )
        for constants in (assumed, constants_for(found, "deepspeed_llm"), true)
    )
    assert np.mean(np.abs(before.step_seconds / expected.step_seconds - 1)) > 0.05
    # Of layouts that were not run, too; the constants' spreads hold the fit back.
    assert np.mean(np.abs(after.step_seconds / expected.step_seconds - 1)) < 0.05
    assert np.mean(np.abs(after.peak_memory_gib / expected.peak_memory_gib - 1)) < 0.05


def test_runs_must_be_measured_and_alike(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = written(tmp_path / "runs.csv", sweep)
    fake = new_store(tmp_path / "fake").directory
    assert refusal(capsys, fake) == (
        f"run {str(fake)!r} must be measured to calibrate from, got fake trials"
    )
    empty = new_store(tmp_path / "empty", trainable="deepspeed").directory
    sentence = f"run {str(empty)!r} must have a layout that ran, got none"
    assert refusal(capsys, empty) == sentence
    ours = run_of_ours(tmp_path / "ours", assumed_constants("deepspeed_llm")).directory
    sentence = "all runs must have one device, got a100-80gb, cpu"
    assert refusal(capsys, ours, recorded) == sentence
    sentence = "all runs must have one trainer, got deepspeed_llm, hagemann2023"
    assert refusal(capsys, ours, recorded, "--gpu", "a100-80gb") == sentence


@pytest.mark.slow
@pytest.mark.skipif(
    not PAPER_RUNS.is_dir(), reason="the recorded runs are not there (their licence: CC BY-NC-SA)"
)
def test_recorded_sweeps_are_predicted_from_the_others() -> None:
    sweeps = read_sweeps(PAPER_RUNS)
    constants = leave_one_out(sweeps)
    found = [accuracy(sweep, constants[sweep.name]) for sweep in sweeps]
    assert statistics.fmean(one.step_time_mape or 0 for one in found) < 0.045
    assert statistics.fmean(one.oom_f1 or 0 for one in found) >= 0.97
    assert statistics.fmean(one.spearman or 0 for one in found) >= 0.9
