"""Good input with something changed by chance: every command takes it, or refuses it in one line.

`make test-all` tries ten times as many changes, others every time.
"""

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.hardware import device_named, device_to_json, network_named
from autotune.layout import LAYOUT_COLUMNS
from autotune.options.command_line import command_line
from autotune.trial.trial import to_json
from tests.autotune.calibration.test_recorded_runs import SHEET, SHEET_ROW
from tests.autotune.test_bad_input import (
    COMMANDS,
    MISSING,
    MODEL,
    SHARED,
    SPACE_OPTIONS,
    Capture,
    changed,
    check_line,
    folder,
    places_of,
)
from tests.conftest import examples
from tests.trainables.recorded_runs import RECORDED_RUNS

__all__ = ["folder"]  # a fixture: nothing is started, and nothing is left
pytestmark = pytest.mark.timeout(120)

DEVICE = json.loads(device_to_json(dataclasses.replace(device_named("a100-80gb"), name="mine")))
NETWORK = to_json(network_named("dgx-a100"))
LAYOUT = {"tensor_parallel": 2, "zero_stage": 1, "attention_kernel": "sdpa_flash"}
JSON_FILES: dict[str, tuple[Any, list[tuple[object, ...]]]] = {
    "model": (
        MODEL,
        [("plan", "--model"), ("run", "--dry-run", "--space", "tiny", "--model")],
    ),
    "device": (DEVICE, [("plan", "--space", "llm13b", "--gpu")]),
    "network": (NETWORK, [("run", "--dry-run", "--space", "llm13b", "--network")]),
    "layout": (
        LAYOUT,
        [
            ("plan", "--space", "tiny", "--explain"),
            ("train", "--model", json.dumps(MODEL), "--steps", "0", "--layout"),
        ],
    ),
}
"""By name: a good value, and commands that take the path of its file as their last argument."""

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 2**31, 10**30, 1e-300, 1e308, -1e308, 0.5, "", "x", "1", "é",
    "\0", "a/b", "\x1b[31m", "x" * 100_000, [], {}, [[]], [None], {"": ""}, {"value": 1}, [1, 1],
    ["x" * 5000], MISSING,
)  # fmt: skip
MILD = (1, 2, 4, 8, 64, 128, 1000, 4096, 0.25, 1e-9, 1e9, 2**31 - 1, "bf16", "cpu", "full")
NO_JSON = ("NaN", "Infinity", "1e999", "9" * 5000, "[" * 5000, "tru", "'x'", "", "{}{}", "\ufeff{}")


def check(capsys: Capture, *words: object) -> None:
    command, *arguments = map(str, words)
    status = command_line(COMMANDS[command], arguments)
    captured = capsys.readouterr()
    assert status in (0, 2, 3)
    if status == 0:
        assert captured.err == ""
    else:
        assert captured.out == ""
        check_line(captured.err)
        assert len(captured.err) < 1_000


def flipped(content: bytes, draw: Callable[..., Any]) -> bytes:
    """The content with some of its bytes replaced, dropped or repeated."""
    mutated = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = int(draw(st.floats(0, 1, exclude_max=True)) * len(mutated))
        end = place + draw(st.sampled_from([1, 1, 9]))
        mutated[place:end] = draw(st.sampled_from([b"", b"\0", b"\xff", b'"', b"9", b"{", b"-"]))
    return bytes(mutated)


@st.composite
def mutated_json(draw: Callable[..., Any], good: Any) -> bytes:
    value = good
    for place in draw(st.lists(st.sampled_from([p for p in places_of(good) if p]), max_size=2)):
        new = draw(st.sampled_from(HOSTILE) | st.sampled_from(MILD))
        with contextlib.suppress(LookupError, TypeError):  # the other change took that place away
            value = changed(value, place, new)
    text = json.dumps(value)
    match draw(st.sampled_from([*["as it is"] * 6, "key", "repeated", "no JSON", "bytes"])):
        case "key":
            text = json.dumps({**value, draw(st.sampled_from(["", "x", "x" * 9000])): 1})
        case "repeated":
            text = '{"hidden_size": 1, ' + text[1:] + text[-1:] * draw(st.integers(0, 1))
        case "no JSON":
            key = draw(st.sampled_from(sorted(good)))
            text = f'{{"{key}": {draw(st.sampled_from(NO_JSON))}, {text[1:]}'
        case "bytes":
            return flipped(text.encode(), draw)
    return text.encode()


@pytest.mark.parametrize("name", JSON_FILES)
@examples(60, suppress_health_check=SHARED)
@given(data=st.data())
def test_a_json_file(name: str, data: st.DataObject, tmp_path: Path, capsys: Capture) -> None:
    good, commands = JSON_FILES[name]
    file = tmp_path / "given.json"
    file.write_bytes(data.draw(mutated_json(good)))
    for command in commands:
        check(capsys, *command, file)


TEXTS = [*map(str, HOSTILE), *NO_JSON, "1,2", "1,,2", "1=1", "\n", " 1 ", "٣", "0x10", "1_0", "+1"]


@examples(100, suppress_health_check=SHARED)
@given(
    options=st.dictionaries(
        st.sampled_from(sorted(SPACE_OPTIONS)),
        st.sampled_from(TEXTS) | st.sampled_from(list(map(str, MILD))),
        min_size=1,
        max_size=2,
    ),
    dimension=st.sampled_from(LAYOUT_COLUMNS),
    command=st.sampled_from(["plan", "run"]),
)
def test_the_options_of_a_space(
    options: dict[str, str], dimension: str, command: str, capsys: Capture
) -> None:
    options = {"--space": "tiny", **options}
    if "--fix" in options:
        options["--fix"] = f"{dimension}={options['--fix']}"
    words = [f"{name}={value}" for name, value in options.items() if "\0" not in value]
    check(capsys, command, *words, *["--dry-run"] * (command == "run"))


@st.composite
def mutated_csv(draw: Callable[..., Any]) -> bytes:
    rows = list(csv.reader(RECORDED_RUNS.splitlines()))
    for _ in range(draw(st.integers(0, 2))):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        column = draw(st.integers(0, len(row) - 1))
        words = [cell for row in rows for cell in row]
        other = draw(st.sampled_from([*TEXTS, *map(str, MILD)]) | st.sampled_from(words))
        match draw(st.sampled_from([*["cell"] * 6, "drop", "add"])):
            case "cell":
                row[column] = other
            case "drop":
                del row[column:]
                row.append("")
            case "add":
                row.insert(column, other)
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    content = text.getvalue().encode()
    return flipped(content, draw) if draw(st.integers(0, 7)) == 7 else content


REPLAY = ("run", "--dry-run", "--trainable", "replay", "--runs")


@examples(150, suppress_health_check=SHARED)
@given(content=mutated_csv())
def test_recorded_runs(content: bytes, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "runs.csv"
    file.write_bytes(content)
    check(capsys, *REPLAY, file)


@examples(60, suppress_health_check=SHARED)
@given(data=st.data())
def test_a_spreadsheet(data: st.DataObject, tmp_path: Path, capsys: Capture) -> None:
    book = openpyxl.Workbook()
    table = book.active
    assert table is not None
    rows: list[list[Any]] = [["runs"], list(SHEET_ROW), *[list(SHEET_ROW.values())] * 2]
    for row in rows:
        table.append(row)
    numbers = [None, True, 0, 1, -1, 2, 0.5, 1e-300, 1e300, 10**18, "", "x", "0.5", "50 %", "OOM"]
    for _ in range(data.draw(st.integers(0, 3))):
        cell = table.cell(data.draw(st.integers(2, 5)), data.draw(st.integers(1, 9)))
        cell.value = data.draw(st.sampled_from([*numbers, *SHEET_ROW]))
    file = tmp_path / SHEET
    book.save(file)
    if data.draw(st.booleans()):
        file.write_bytes(flipped(file.read_bytes(), data.draw))
    check(capsys, *REPLAY, file)


@examples(10, suppress_health_check=SHARED)
@given(content=mutated_csv())
def test_a_fit_to_recorded_runs(content: bytes, tmp_path: Path, capsys: Capture) -> None:
    file, out = tmp_path / "runs.csv", tmp_path / "fitted.json"
    file.write_bytes(content)
    check(capsys, "calibrate", file, "--out", out)
    if out.exists():
        assert device_named(str(out)).name == "a100-80gb"
