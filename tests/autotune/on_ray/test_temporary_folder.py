"""Temporary folders are private, go with their owner, and are never taken from another."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.errors import InputError
from autotune.on_ray.temporary_folder import refuse_long_path, temporary_folder
from tests.faults.test_driver import fill, small_disk

OWNER = """
from autotune.on_ray.temporary_folder import temporary_folder
with temporary_folder() as folder:
    (folder / "some" / "files").mkdir(parents=True)
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is kept from before
    return tmp_path


@contextlib.contextmanager
def another_search() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


def test_it_is_private_and_removed_at_the_end(parent: Path) -> None:
    with temporary_folder() as folder:
        assert folder.parent == parent and folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("x")
    assert list(parent.iterdir()) == []


def test_it_is_kept_where_that_is_asked_for_also_by_later_searches(parent: Path) -> None:
    with temporary_folder(keep=True) as kept:
        pass
    with temporary_folder():
        pass
    assert list(parent.iterdir()) == [kept]


def test_a_later_search_removes_the_folder_of_a_killed_one_and_no_other(parent: Path) -> None:
    (parent / "autotune.log").write_text("no folder")
    (parent / "autotune.mine").mkdir()
    (parent / "autotune.link").symlink_to(parent / "autotune.mine")
    others = set(parent.iterdir())
    with another_search() as (search, its), temporary_folder():
        assert (its / "some" / "files").exists(), "its owner lives"
        search.send_signal(signal.SIGKILL)
        search.wait()
        assert its.exists()
        with temporary_folder() as ours:
            assert not its.exists() and ours.exists()
    assert set(parent.iterdir()) == others


def test_where_a_process_still_writes_the_folder_is_left_for_the_next_search(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, temporary_folder() as folder:
        (folder / "busy").mkdir()
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # as if it was made again
    assert folder.exists()
    with temporary_folder():
        assert not folder.exists()


def test_a_folder_that_cannot_be_used_is_one_sentence(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(parent / "missing"))
    sentence = r"^the temporary folder \(TMPDIR\) must be writable, got '.*/missing': No such file"
    with pytest.raises(InputError, match=sentence), temporary_folder():
        pass
    with small_disk(parent / "disk", "70m") as disk:
        monkeypatch.setenv("RAY_TMPDIR", str(disk))
        with temporary_folder():
            pass
        fill(disk / "filler")
        sentence = r"must have at least 64 MiB free, got 0\.\d MiB in '.*/disk'$"
        with pytest.raises(InputError, match=sentence), temporary_folder():
            pass


def test_a_path_that_is_too_long_for_sockets_is_one_sentence(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_long_path(Path("/tmp/x") / ("s" * 100))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 80)
    with pytest.raises(InputError, match=r"must have a path of at most 74 bytes, .*, got '/tmp/xx"):
        refuse_long_path(Path(os.environ["RAY_TMPDIR"], "s" * 32))
