"""The export of a layout for the user's own command: the script starts it, for real."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import InputError
from autotune.export import default_format, export_layout
from autotune.layout import Layout
from autotune.request import Request
from tests.autotune.simulate import fake_request

HOSTILE = "a 'b' \"c\" $(touch made) `touch made` ; {{d}} ${{e}}"
PROGRAM = """\
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "X")
seen = {name: os.environ.get(name) for name in names}
line = json.dumps([sys.argv[1:], seen, os.getcwd()]) + "\\n"
os.write(1, line.encode())  # at once: processes share the pipe
if "fail" in sys.argv and os.environ.get("LOCAL_RANK") == "1":
    sys.exit(7)
if "fail" in sys.argv:
    import time
    time.sleep(60)
"""


def exported(folder: Path, **recipe: Any) -> tuple[Path, Layout, Request]:
    work = folder / "work"
    work.mkdir()
    (work / "train.py").write_text(PROGRAM)
    command = {
        "argv": [
            sys.executable, "train.py", "--mbs={micro_batch_size}", "{activation_checkpointing}",
            "--steps", "{steps}", "{node_rank}:{rank}@{master_addr}:{master_port}", HOSTILE,
        ],
        "values": {"activation_checkpointing": {"none": [], "full": ["--recompute", "full"]}},
        "directory": str(work),
        "env": {"X": "{tensor_parallel} of {local_rank}"},
        **recipe,
    }  # fmt: skip
    request = fake_request(trainable="command", command=command)
    layouts = request.space.layouts()
    layout = next(it for it in layouts if it.activation_checkpointing == "full")
    assert default_format(request) == "command"
    export_layout(folder / "export", layout, request, "command")
    return folder / "export" / "launch.sh", layout, request


def launched(script: Path, *arguments: str, **variables: str) -> Any:
    return subprocess.run(
        [script, *arguments],
        env={"PATH": os.environ["PATH"], "MASTER_ADDR": "first", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )


def test_the_command_is_started_once_on_each_node(tmp_path: Path) -> None:
    script, layout, _ = exported(tmp_path)
    done = launched(script, "--more", NODE_RANK="1", STEPS="7")
    assert (done.returncode, done.stderr) == (0, "")
    arguments, seen, directory = json.loads(done.stdout)
    assert arguments == [
        f"--mbs={layout.micro_batch_size}", "--recompute", "full", "--steps", "7",
        "1:2@first:29500", HOSTILE.format(), "--more",
    ]  # fmt: skip
    assert directory == str(tmp_path / "work") and not list(tmp_path.rglob("made"))
    assert seen["X"] == f"{layout.tensor_parallel} of 0"
    assert seen["MASTER_ADDR"] == "first" and seen["RANK"] is None
    missing = launched(script)
    assert missing.returncode != 0 and "NODE_RANK: 0 to 1" in missing.stderr


def test_the_command_is_started_once_for_each_rank(tmp_path: Path) -> None:
    script, layout, _ = exported(tmp_path, processes="rank")
    done = launched(script, NODE_RANK="1")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(seen["RANK"] for _, seen, _ in lines) == ["2", "3"]
    for arguments, seen, _ in lines:
        assert seen["WORLD_SIZE"] == "4" and seen["LOCAL_WORLD_SIZE"] == "2"
        assert int(seen["RANK"]) == 2 + int(seen["LOCAL_RANK"])
        assert seen["X"] == f"{layout.tensor_parallel} of {seen['LOCAL_RANK']}"
        assert f"1:{seen['RANK']}@first:29500" in arguments


@pytest.mark.parametrize("processes", ["node", "rank"])
def test_files_and_folders_of_the_command(processes: str, tmp_path: Path) -> None:
    script, layout, _ = exported(
        tmp_path,
        processes=processes,
        argv=["cat", "{scratch_directory}/a.json", "{log_directory}/b"],
        files={"a.json": '{"mbs": {micro_batch_size}, "quote": "\'", "rank": {rank}}\n'},
    )
    (tmp_path / "b").write_text("b\n")
    done = launched(script, NODE_RANK="1", LOGS=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    ranks = ["2"] if processes == "node" else ["2", "3"]
    assert sorted(line for line in done.stdout.splitlines() if line != "b") == [
        f'{{"mbs": {layout.micro_batch_size}, "quote": "\'", "rank": {rank}}}' for rank in ranks
    ]


def test_a_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    script, _, _ = exported(tmp_path, processes="rank")
    assert launched(script, "fail", NODE_RANK="0").returncode == 7


def test_other_formats_have_the_layout_too(tmp_path: Path) -> None:
    _, layout, request = exported(tmp_path)
    files = export_layout(tmp_path / "other", layout, request, "megatron-lm").files
    assert f"--micro-batch-size {layout.micro_batch_size}" in files["launch.sh"]
    with pytest.raises(InputError, match="format deepspeed does not start"):
        export_layout(tmp_path / "none", layout, request, "deepspeed")
