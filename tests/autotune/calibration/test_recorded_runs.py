"""Runs that others recorded: what is read, and one sentence for what cannot be read."""

import collections
import csv
import tracemalloc
from pathlib import Path
from typing import Any

import openpyxl
import psutil
import pytest

from autotune.calibration.recorded_runs import RecordedRun, Sweep, read_sweeps
from autotune.errors import InputError
from autotune.inputs import shown
from autotune.layout import Layout, why_illegal
from autotune.trial.trial import Outcome
from tests.conftest import REPOSITORY

PAPER_RUNS = REPOSITORY.parent / "shared" / "paper_runs"

ROW: dict[str, Any] = {
    "sweep": "mine",
    "model": "13B",
    "sequence_length": 2048,
    "world_size": 64,
    "global_batch_size": 2048,
    "tensor_parallel": 2,
    "pipeline_parallel": 2,
    "data_parallel": 16,
    "micro_batch_size": 1,
    "activation_checkpointing": "none",
    "sequence_parallel": False,
    "attention_kernel": "flash2",
    "rmsnorm_kernel": True,
    "outcome": "ok",
    "step_seconds": 30.0,
}
OOM = {"outcome": "oom", "step_seconds": ""}
ERROR = {"outcome": "error", "step_seconds": ""}


def written(file: Path, *changes: dict[str, Any], without: str = "") -> Path:
    """A CSV with one row for each of `changes` to ROW, and all columns but one."""
    rows = [{**ROW, **change} for change in changes]
    columns = [name for name in ROW if name != without]
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return file


def only_sweep(tmp_path: Path, *changes: dict[str, Any]) -> Sweep:
    (sweep,) = read_sweeps(written(tmp_path / "runs.csv", *changes))
    return sweep


def only_run(tmp_path: Path, *changes: dict[str, Any]) -> RecordedRun:
    (run,) = only_sweep(tmp_path, *changes).runs
    return run


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_sweeps(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_row_is_a_layout_of_the_papers_model_on_its_cluster(tmp_path: Path) -> None:
    sweep = only_sweep(tmp_path, {})
    assert (sweep.name, sweep.trainer, sweep.precision) == ("mine", "hagemann2023", "bf16")
    assert (sweep.cluster.nodes, sweep.cluster.gpus_per_node) == (8, 8)
    assert sweep.cluster.device.name == "a100-80gb"
    # 13B in table 1; with the two embeddings of 128,000 x 5120 it has 14.0 billion parameters.
    assert sweep.model.parameters == 13_998_904_320
    assert sweep.runs == (
        RecordedRun(
            layout=Layout(
                tensor_parallel=2,
                pipeline_parallel=2,
                data_parallel=16,
                zero_stage=1,
                micro_batch_size=1,
                gradient_accumulation_steps=128,
                activation_checkpointing="none",
                attention_kernel="flash2",
                rmsnorm_kernel="fused",
            ),
            outcome=Outcome.OK,
            step_seconds=30.0,
        ),
    )


@pytest.mark.parametrize(
    ("model", "parameters"),
    # Blocks of 4 h^2 + 3 h f + 2 h, two embeddings, one norm.
    [
        ("13B", 40 * 317_204_480 + 2 * 128_000 * 5120 + 5120),
        ("30B", 60 * 534_410_240 + 2 * 128_000 * 6656 + 6656),
        ("65B", 80 * 809_517_056 + 2 * 128_000 * 8192 + 8192),
    ],
)
def test_models_have_the_papers_shapes(tmp_path: Path, model: str, parameters: int) -> None:
    assert (
        only_sweep(tmp_path, {"model": model, "step_seconds": 100}).model.parameters == parameters
    )


def test_repetitions_are_merged_to_their_mean(tmp_path: Path) -> None:
    sweep = only_sweep(tmp_path, {}, {"micro_batch_size": 2}, {"step_seconds": 32.0})
    assert [run.step_seconds for run in sweep.runs] == [31.0, 30.0]
    assert [run.layout.micro_batch_size for run in sweep.runs] == [1, 2]


@pytest.mark.parametrize(
    ("rows", "outcome"),
    [
        ([OOM, {}], Outcome.OK),
        ([ERROR, {}], Outcome.OK),
        ([ERROR, OOM], Outcome.OOM),
        ([OOM, ERROR], Outcome.OOM),
        ([ERROR, ERROR], Outcome.CRASHED),
    ],
)
def test_among_repetitions_what_ran_beats_out_of_memory_beats_a_failure(
    tmp_path: Path, rows: list[dict[str, Any]], outcome: Outcome
) -> None:
    run = only_run(tmp_path, *rows)
    assert run.outcome is outcome
    assert run.step_seconds == (30.0 if outcome is Outcome.OK else None)


def test_a_kernel_that_does_not_exist_is_no_layout(tmp_path: Path) -> None:
    sweep = only_sweep(tmp_path, {"outcome": "kernel_na", "attention_kernel": "megatron"}, {})
    assert [run.layout.attention_kernel for run in sweep.runs] == ["flash2"]


def test_only_what_ran_is_timed_and_the_fastest_is_the_best(tmp_path: Path) -> None:
    rows = [{"micro_batch_size": 1, **OOM}, {"micro_batch_size": 2, **ERROR}]
    sweep = only_sweep(
        tmp_path, *rows, {"micro_batch_size": 4}, {"micro_batch_size": 8, "step_seconds": 25}
    )
    assert [run.layout.micro_batch_size for run in sweep.timed] == [4, 8]
    assert sweep.best_seconds == 25


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"sequence_parallel": "True"}, "sequence_parallel", True),
        ({"sequence_parallel": 1}, "sequence_parallel", True),
        (
            {"sequence_parallel": True, "tensor_parallel": 1, "data_parallel": 32},
            "sequence_parallel",
            False,
        ),
        ({"activation_checkpointing": "none"}, "activation_checkpointing", "none"),
        ({"activation_checkpointing": "disabled"}, "activation_checkpointing", "none"),
        ({"activation_checkpointing": "every_layer"}, "activation_checkpointing", "full"),
        ({"attention_kernel": "torch"}, "attention_kernel", "math"),
        ({"attention_kernel": "megatron"}, "attention_kernel", "megatron"),
        ({"attention_kernel": "flash1"}, "attention_kernel", "flash1"),
        ({"attention_kernel": "flash2"}, "attention_kernel", "flash2"),
        ({"rmsnorm_kernel": True}, "rmsnorm_kernel", "fused"),
        ({"rmsnorm_kernel": "false"}, "rmsnorm_kernel", "plain"),
    ],
)
def test_the_recordings_names_become_ours(
    tmp_path: Path, change: dict[str, Any], field: str, value: object
) -> None:
    assert getattr(only_run(tmp_path, change).layout, field) == value


def test_a_file_can_hold_many_sweeps_and_a_folder_many_files(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", {}, {"sweep": "larger", "model": "30B", "step_seconds": 100})
    written(tmp_path / "b.csv", {"sweep": "longer", "sequence_length": 8192, "step_seconds": 100})
    (tmp_path / "notes.txt").write_text("not read")
    sweeps = {sweep.name: sweep.model for sweep in read_sweeps(tmp_path)}
    assert list(sweeps) == ["mine", "larger", "longer"]
    assert sweeps["larger"].num_hidden_layers == 60
    assert sweeps["longer"].sequence_length == 8192


@pytest.mark.parametrize("column", [name for name in ROW if name != "step_seconds"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    file = written(tmp_path / "runs.csv", {}, without=column)
    assert refusal(file) == f"runs: runs.csv, line 2: {column} is missing"


def test_step_seconds_may_only_be_missing_where_nothing_ran(tmp_path: Path) -> None:
    file = written(tmp_path / "runs.csv", OOM, without="step_seconds")
    assert read_sweeps(file)[0].runs[0].outcome is Outcome.OOM
    file = written(tmp_path / "runs.csv", OOM, {}, without="step_seconds")
    assert refusal(file) == "runs: runs.csv, line 3: step_seconds is missing"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"attention_kernel": "flash3"},
            "attention_kernel must be one of torch, megatron, flash1, flash2, got 'flash3'",
        ),
        ({"model": "7B"}, "model must be one of 13B, 30B, 65B, got '7B'"),
        ({"outcome": "fine"}, "outcome must be one of ok, oom, kernel_na, error, got 'fine'"),
        (
            {"activation_checkpointing": "some"},
            "activation_checkpointing must be one of none, disabled, every_layer, got 'some'",
        ),
        ({"world_size": 60}, "world_size must be a multiple of 8, got 60"),
        ({"world_size": 4}, "world_size must be a multiple of 8, got 4"),
        ({"step_seconds": "fast"}, "step_seconds must be a number from 1e-09 to 1e+09, got 'fast'"),
        ({"step_seconds": 0}, "step_seconds must be a number from 1e-09 to 1e+09, got '0'"),
        ({"step_seconds": "nan"}, "step_seconds must be a number from 1e-09 to 1e+09, got 'nan'"),
        *(
            (
                {"step_seconds": seconds},
                f"step_seconds must be a number from 1e-09 to 1e+09, got {str(seconds)!r}",
            )
            for seconds in ("1e-300", "1e300", "-1", "-inf", "True", "1e-10")
        ),
        (
            {"sequence_parallel": "yes", "tensor_parallel": 1, "data_parallel": 32},
            "sequence_parallel must be True or False, got 'yes'",
        ),
        (
            {"step_seconds": 18.69},
            "step_seconds must be at least 18.7, which the arithmetic takes at the peak of "
            "a100-80gb, got 18.69",
        ),
        (
            {"sweep": "a/b"},
            "sweep: name must be 1 to 100 printable characters without '/' and not"
            " begin with a dot, got 'a/b'",
        ),
        ({"step_seconds": "inf"}, "step_seconds must be a number from 1e-09 to 1e+09, got 'inf'"),
        (
            {"tensor_parallel": "two"},
            "tensor_parallel must be a whole number from 1 to 2147483647, got 'two'",
        ),
        (
            {"pipeline_parallel": 0},
            "pipeline_parallel must be a whole number from 1 to 2147483647, got '0'",
        ),
        (
            {"data_parallel": 1.5},
            "data_parallel must be a whole number from 1 to 2147483647, got '1.5'",
        ),
        ({"sequence_parallel": "yes"}, "sequence_parallel must be True or False, got 'yes'"),
        ({"rmsnorm_kernel": "fused"}, "rmsnorm_kernel must be True or False, got 'fused'"),
        (
            {"micro_batch_size": 3},
            "data_parallel * micro_batch_size must divide global_batch_size, got 16 * 3 and 2048",
        ),
    ],
)
def test_a_bad_value_is_one_sentence_with_its_line(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    assert refusal(written(tmp_path / "runs.csv", change)) == f"runs: runs.csv, line 2: {sentence}"


@pytest.mark.parametrize(
    "change", [{"model": "30B"}, {"sequence_length": 8192}, {"world_size": 32}]
)
def test_a_sweep_has_one_model_and_one_cluster(tmp_path: Path, change: dict[str, Any]) -> None:
    file = written(tmp_path / "runs.csv", {}, change)
    assert refusal(file) == (
        "runs: runs.csv, line 3: sweep mine must have one model and one cluster"
    )


def test_lines_are_those_of_the_file_and_as_long_as_the_first(tmp_path: Path) -> None:
    file = written(tmp_path / "runs.csv", {}, {})
    head, first, second = file.read_text().splitlines()
    file.write_text("\n".join([head, "", first, "", second + ",more"]))
    assert refusal(file) == (
        "runs: runs.csv, line 5: must have as many cells as line 1, got ['more'] after them"
    )
    file.write_text("\n".join([f"{head},model", f"{first},30B"]))
    assert refusal(file) == "runs: runs.csv, line 1: column 'model' is given twice"


def test_a_sweep_is_in_one_file_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        written(tmp_path / name, {})
    assert refusal(tmp_path) == f"runs: sweep mine is in more than one file of {shown(tmp_path)}"


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.csv").startswith("runs: no such file or folder: ")
    assert refusal(tmp_path).startswith("runs: no .csv or .xlsx file in ")
    other = tmp_path / "runs.txt"
    other.write_text("sweep\n")
    assert refusal(other) == f"runs must be a .csv or .xlsx file, got {shown(other)}"
    empty = tmp_path / "empty.csv"
    for text in ("", "sweep,model\n"):
        empty.write_text(text)
        assert refusal(empty) == f"runs: no run in {shown(empty)}"
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    assert refusal(binary).startswith(f"runs: cannot read {shown(binary)}: ")
    text = tmp_path / "prose.csv"
    text.write_text("It was a dark and stormy night.\nNothing ran.\n")
    assert refusal(text) == "runs: prose.csv, line 2: sweep is missing"


SHEET_ROW = {
    "model_parallel_size": 2,
    "pipe_parallel_size": 2,
    "micro_batch_size": 1,
    "activation_checkpointing_type": "disabled",
    "sequence_parallel": None,
    "kernel": "flash_attention2 + RMS kernel",
    "Average MFU": 0.5,
}
SHEET = "llama_13B_bfloat16_64_GPUs_all_runs.xlsx"


def sheet(file: Path, *changes: dict[str, Any]) -> Path:
    """A spreadsheet as the authors publish them: a title, the head, a row for each run."""
    book = openpyxl.Workbook()
    table = book.active
    assert table is not None
    table.append(["runs"])
    table.append(list(SHEET_ROW))
    for change in changes:
        table.append(list({**SHEET_ROW, **change}.values()))
    book.save(file)
    return file


def test_step_times_of_a_spreadsheet_follow_from_the_utilisation(tmp_path: Path) -> None:
    (sweep,) = read_sweeps(sheet(tmp_path / SHEET, {}))
    assert sweep.name == "llama_13B_bfloat16_64_GPUs_all_runs"
    assert sweep.cluster.devices == 64
    assert (sweep.model.sequence_length, sweep.model.global_batch_size) == (2048, 2048)
    (run,) = sweep.runs
    assert run.layout == Layout(
        tensor_parallel=2,
        pipeline_parallel=2,
        data_parallel=16,
        gradient_accumulation_steps=128,
        attention_kernel="flash2",
        rmsnorm_kernel="fused",
    )
    # Per token 6 x 13,998,904,320 + 12 x 40 x 5120 x 2048 = 89,026,590,720 FLOPs; 2048 x 2048
    # tokens; half of 64 x 312e12 FLOP/s.
    assert run.step_seconds == pytest.approx(4_194_304 * 89_026_590_720 / 9.984e15)
    assert run.step_seconds == pytest.approx(37.40, abs=0.005)


def test_half_the_utilisation_is_twice_the_time(tmp_path: Path) -> None:
    rows = [{"micro_batch_size": 1}, {"micro_batch_size": 2, "Average MFU": 0.25}]
    (sweep,) = read_sweeps(sheet(tmp_path / SHEET, *rows))
    first, second = (run.step_seconds for run in sweep.runs)
    assert first is not None and second == pytest.approx(2 * first)


def test_long_sequences_are_told_by_the_spreadsheets_name(tmp_path: Path) -> None:
    file = tmp_path / "llama_30B_8k_bfloat16_128_GPUs.xlsx"
    (sweep,) = read_sweeps(sheet(file, {}))
    assert (sweep.model.sequence_length, sweep.model.global_batch_size) == (8192, 512)
    assert (sweep.model.num_hidden_layers, sweep.cluster.devices) == (60, 128)
    assert sweep.runs[0].layout.data_parallel == 32


@pytest.mark.parametrize(
    ("mfu", "outcome"),
    [
        ("OOM", Outcome.OOM),
        ("OOM Error", Outcome.OOM),
        ("CUDA out of memory", Outcome.OOM),
        ("Kernel unavail.", Outcome.CRASHED),
        ("#DIV/0!", Outcome.CRASHED),
        ("n/a", Outcome.CRASHED),
        ("-", Outcome.CRASHED),
        ("0", Outcome.CRASHED),
        ("failed", Outcome.CRASHED),
        (None, Outcome.CRASHED),
        (0, Outcome.CRASHED),
    ],
)
def test_a_spreadsheet_tells_what_did_not_run(
    tmp_path: Path, mfu: str | None, outcome: Outcome
) -> None:
    (sweep,) = read_sweeps(sheet(tmp_path / SHEET, {"Average MFU": mfu}))
    assert (sweep.runs[0].outcome, sweep.runs[0].step_seconds) == (outcome, None)


@pytest.mark.parametrize(
    ("text", "mfu"),
    [
        ("0.55", 0.55),
        (" 0.55 ", 0.55),
        ("0,55", 0.55),
        (".55", 0.55),
        ("5.5e-1", 0.55),
        ("55%", 0.55),
        ("55.1 %", 0.551),
        ("55,1 %", 0.551),
        ("1", 1.0),
    ],
)
def test_figures_of_a_spreadsheet_may_be_text(tmp_path: Path, text: str, mfu: float) -> None:
    seconds = [
        read_sweeps(sheet(tmp_path / SHEET, {"Average MFU": value}))[0].runs[0].step_seconds
        for value in (text, mfu)
    ]
    assert seconds[0] is not None and seconds[0] == pytest.approx(seconds[1])


@pytest.mark.parametrize(
    "cell",
    ["n/a?", "0.5.5", "55.1", "55,1", "1,055.1 %", "-0.5", "0x1", "\u0660.5", True, 1.5, -0.5, "?"],
)
def test_a_figure_that_cannot_be_read_names_its_cell(tmp_path: Path, cell: object) -> None:
    sentence = refusal(sheet(tmp_path / SHEET, {}, {"Average MFU": cell}))
    assert sentence.startswith(
        f"runs: '{SHEET}', sheet 'Sheet', cell G4: Average MFU must be a number from 0 to 1, a "
        "percentage, or say what failed (OOM, "
    )
    assert sentence.endswith(f"got {cell!r}")


def test_a_spreadsheet_without_figures_is_refused(tmp_path: Path) -> None:
    file = sheet(tmp_path / SHEET, {})
    book = openpyxl.load_workbook(file)
    book.active["G2"] = "MFU"
    book.save(file)
    assert refusal(file) == f"runs: {SHEET}, line 2: column Average MFU is missing"
    book.active["G2"] = "kernel"
    book.save(file)
    assert refusal(file) == f"runs: {SHEET}, line 2: column 'kernel' is given twice"


def test_a_cell_far_away_costs_nothing(tmp_path: Path) -> None:
    file = sheet(tmp_path / SHEET, {})
    book = openpyxl.load_workbook(file)
    book.active["XFD200000"] = "far"
    book.save(file)
    tracemalloc.start()
    (sweep,) = read_sweeps(file)
    largest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(sweep.runs) == 1 and largest < 50e6


@pytest.mark.parametrize(
    ("kernel", "attention", "norm"),
    [
        ("torch", "math", "plain"),
        ("fused", "megatron", "plain"),
        ("flash_attention", "flash1", "plain"),
        ("flash_attentionv1.0.8", "flash1", "plain"),
        ("flash_attention2", "flash2", "plain"),
        ("flash_attention2 + RMS kernel", "flash2", "fused"),
    ],
)
def test_a_spreadsheets_kernels_become_ours(
    tmp_path: Path, kernel: str, attention: str, norm: str
) -> None:
    (sweep,) = read_sweeps(sheet(tmp_path / SHEET, {"kernel": kernel}))
    layout = sweep.runs[0].layout
    assert (layout.attention_kernel, layout.rmsnorm_kernel) == (attention, norm)


def test_a_spreadsheets_recomputation_and_sharded_sequences_become_ours(tmp_path: Path) -> None:
    change = {"activation_checkpointing_type": "every_layer", "sequence_parallel": True}
    (sweep,) = read_sweeps(sheet(tmp_path / SHEET, change))
    layout = sweep.runs[0].layout
    assert (layout.activation_checkpointing, layout.sequence_parallel) == ("full", True)


def test_empty_rows_of_a_spreadsheet_are_no_runs(tmp_path: Path) -> None:
    blank = dict.fromkeys(SHEET_ROW)
    (sweep,) = read_sweeps(sheet(tmp_path / SHEET, blank, {}, blank))
    assert len(sweep.runs) == 1
    file = sheet(tmp_path / SHEET)
    assert refusal(file) == f"runs: no run in {shown(file)}"


@pytest.mark.parametrize("name", ["runs.xlsx", "llama_7B_bfloat16_64_GPUs.xlsx", "llama_13B.xlsx"])
def test_a_spreadsheets_name_must_tell_model_and_gpus(tmp_path: Path, name: str) -> None:
    assert refusal(sheet(tmp_path / name, {})) == (
        "runs: a spreadsheet's name must tell the model and the GPUs, such as "
        f"llama_13B_bfloat16_64_GPUs_all_runs.xlsx, got {name!r}"
    )


def test_what_is_no_spreadsheet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / SHEET
    file.write_text("sweep,model\n")
    assert refusal(file).startswith(f"runs: cannot read {shown(file)}: ")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"kernel": "flash3"},
            f"runs: {SHEET}, line 3: kernel must be one of torch, fused, flash_attention, "
            "flash_attentionv1.0.8, flash_attention2, flash_attention2 + RMS kernel, got 'flash3'",
        ),
        ({"kernel": None}, f"runs: {SHEET}, line 3: kernel is missing"),
        ({"pipe_parallel_size": None}, f"runs: {SHEET}, line 3: pipe_parallel_size is missing"),
        ({"micro_batch_size": None}, f"runs: {SHEET}, line 3: micro_batch_size is missing"),
    ],
)
def test_a_bad_cell_is_one_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    assert refusal(sheet(tmp_path / SHEET, change)) == sentence


@pytest.mark.parametrize("cell", ["two", 0])
def test_a_bad_size_of_a_spreadsheet_is_refused(tmp_path: Path, cell: object) -> None:
    sentence = refusal(sheet(tmp_path / SHEET, {"model_parallel_size": cell}))
    assert "must be a whole number from 1" in sentence


def test_the_line_of_a_bad_cell_is_the_spreadsheets(tmp_path: Path) -> None:
    sentence = refusal(sheet(tmp_path / SHEET, {}, {"micro_batch_size": "one"}))
    assert sentence.startswith(f"runs: {SHEET}, line 4: micro_batch_size must be")


@pytest.mark.parametrize(
    "change",
    [
        {"data_parallel": 8},
        {"tensor_parallel": 64, "pipeline_parallel": 1, "data_parallel": 1},
        {"tensor_parallel": 1, "pipeline_parallel": 64, "data_parallel": 1},
    ],
)
def test_a_layout_that_cannot_have_run_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    assert refusal(written(tmp_path / "runs.csv", change)).startswith("runs: runs.csv, line 2: ")


def test_a_spreadsheet_is_closed_again(tmp_path: Path) -> None:
    file = sheet(tmp_path / SHEET, {}, {"kernel": "flash3"})
    refusal(file)
    assert str(file) not in [opened.path for opened in psutil.Process().open_files()]


@pytest.mark.skipif(
    not PAPER_RUNS.is_dir(), reason="the recorded runs are not there (their licence: CC BY-NC-SA)"
)
def test_the_papers_recordings_are_read() -> None:
    sweeps = {sweep.name: sweep for sweep in read_sweeps(PAPER_RUNS)}
    counts = {
        name: (
            len(sweep.runs),
            *(
                collections.Counter(run.outcome for run in sweep.runs)[outcome]
                for outcome in (Outcome.OK, Outcome.OOM)
            ),
        )
        for name, sweep in sweeps.items()
    }
    assert counts["13B_2k_64_all"] == (141, 74, 67)
    assert counts["13B_2k_32_sp"] == (24, 13, 11)
    assert sweeps["13B_2k_64_all"].best_seconds == pytest.approx(26.54, abs=0.01)
    for sweep in sweeps.values():
        for run in sweep.runs:
            assert run.layout.world_size == sweep.cluster.devices
            assert why_illegal(run.layout, sweep.model, sweep.precision) is None
