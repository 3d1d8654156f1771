"""What is no file, or too large, is refused in one sentence where a file is wanted: nothing blocks,
and nothing is read without end."""

import json
import os
import socket
from pathlib import Path

import pytest

from autotune.errors import InputError
from autotune.inputs import LARGEST_TABLE, LARGEST_TEXT, opened, read_text
from autotune.output_paths import refuse_impossible_directory, refuse_impossible_file
from tests.autotune.test_bad_input import MODEL, TINY, Capture, folder, refusal

__all__ = ["folder"]  # a fixture: nothing is started, and nothing is left

NEEDS = ("--model", json.dumps(MODEL), "--steps", 1)
WANTED: dict[str, tuple[object, ...]] = {
    "model.json": ("plan", "--model"),
    "gpu.json": ("plan", *TINY, "--gpu"),
    "network.json": ("run", *TINY, "--network"),
    "layout.json": ("train", *NEEDS, "--layout"),
    "explained.json": ("plan", *TINY, "--explain"),
    "space.py": ("run", "--space"),
    "runs.csv": ("run", "--trainable", "replay", "--runs"),
    "llama_13B_64_GPUs.xlsx": ("calibrate",),
    "text": ("run", *TINY, "--data"),
}
"""By the name of a file: the command and the option that want it."""


def made(path: Path, kind: str) -> Path:
    match kind:
        case "a FIFO":
            os.mkfifo(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(str(path))
        case "a device":
            path.symlink_to("/dev/zero")
        case "a folder":
            path.mkdir()
    return path


@pytest.fixture
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose path is short enough for a socket."""
    (tmp_path / "f").mkdir()
    monkeypatch.chdir(tmp_path)
    return Path("f")


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device", "a folder"])
@pytest.mark.parametrize("name", WANTED)
def test_what_is_no_file(name: str, kind: str, near: Path, capsys: Capture) -> None:
    line = refusal(capsys, *map(str, (*WANTED[name], made(near / name, kind))))
    assert str(near / name) in line and (kind in line or kind == "a folder")


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device"])
def test_what_is_no_file_in_a_folder(kind: str, near: Path, capsys: Capture) -> None:
    (near / "text").write_text("text")
    made(near / "x.csv", kind)
    line = refusal(capsys, "run", *TINY, "--data", near)
    assert f"--data must hold files only, got {kind}: '{near / 'x.csv'}'" in line
    line = refusal(capsys, "run", "--trainable", "replay", "--runs", near)
    assert f"--runs: cannot read '{near / 'x.csv'}': must be a file, got {kind}" in line


@pytest.mark.parametrize("name", [name for name in WANTED if name != "text"])
def test_what_is_too_large(name: str, near: Path, capsys: Capture) -> None:
    largest = LARGEST_TABLE if name.endswith(("csv", "xlsx")) else LARGEST_TEXT
    with (near / name).open("wb") as file:
        file.truncate(largest + 1)  # sparse
    line = refusal(capsys, *map(str, (*WANTED[name], near / name)))
    assert f"must have at most {largest} bytes, got {largest + 1}" in line


def test_a_broken_link_among_texts(near: Path, capsys: Capture) -> None:
    (near / "text").write_text("text")
    (near / "more").symlink_to("nowhere")
    line = refusal(capsys, "run", *TINY, "--data", near)
    assert f"--data: cannot read '{near / 'more'}': No such file or directory" in line


def test_a_file_that_hides_its_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have at most 9 bytes"):
        read_text("/proc/self/maps", largest=9)
    with pytest.raises(InputError, match=r"^cannot read 'a\\x00b': embedded null byte"):
        read_text("a\0b")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"^x: cannot read .*: 'utf-8' codec can't decode byte"):
        read_text(tmp_path / "binary", what="x")


def test_a_file_becomes_a_fifo_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, fifo = tmp_path / "file", made(tmp_path / "fifo", "a FIFO")
    file.write_text("{}")
    status = os.stat(file)
    monkeypatch.setattr(os, "stat", lambda path: status)
    with pytest.raises(InputError, match="must be a file, got a FIFO"), opened(fifo, largest=9):
        pass


# Where something new is to be made.


def places(near: Path) -> dict[str, str]:
    """Paths below which nothing can be made, and why."""
    (near / "file").write_text("")
    (near / "broken").symlink_to("nowhere")
    (near / "circle").symlink_to("circle")
    made(near / "fifo", "a FIFO")
    return {
        f"{near}/file/run": "is a file",
        f"{near}/file": "is a file",
        f"{near}/fifo/a/b": "is a FIFO",
        "/dev/null/run": "is a device",
        "/proc/run": "must be below a writable directory",
        "/proc/1/a/b": "must be below a writable directory",
        f"{near}/broken": "must not lead through a broken symbolic link",
        f"{near}/broken/run": "No such file or directory",
        f"{near}/circle": "Too many levels of symbolic links",
        f"{near}/circle/run": "Too many levels of symbolic links",
    }


def test_where_no_directory_can_be_made(near: Path) -> None:
    for path, reason in places(near).items():
        with pytest.raises(InputError) as error:
            refuse_impossible_directory(Path(path))
        assert reason in str(error.value) and f"got '{path}'" in str(error.value)


def test_where_a_directory_can_be_made(near: Path) -> None:
    (near / "link").symlink_to(".")
    for path in ("new", "new/below/new", "link/new", ".", "link"):
        refuse_impossible_directory(near / path)
        (near / path).mkdir(parents=True, exist_ok=True)
    refuse_impossible_directory(Path("new in the working directory"))
    assert sorted(path.name for path in near.rglob("*")) == ["below", "link", "new", "new"]


def test_where_a_file_can_be_made(near: Path) -> None:
    (near / "there.json").write_text("{}")
    (near / "link.json").symlink_to("nowhere")
    for path in ("there.json", "new.json", "link.json"):
        refuse_impossible_file(near / path)
    assert (near / "there.json").read_text() == "{}" and len(list(near.iterdir())) == 2
    for path in ("/proc/x.json", "/dev/null/x.json", near / "no" / "x.json", near):
        with pytest.raises(InputError, match=f"got .*'{path}'"):
            refuse_impossible_file(Path(path))
