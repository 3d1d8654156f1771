"""Each import contract of pyproject.toml fails where the forbidden import is added."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = ("autotune", "trainables", "search_spaces")
FORBIDDEN = [
    ("autotune/ledger/ranking.py", "import ray", "Only autotune/on_ray imports Ray"),
    ("autotune/cluster.py", "import torch", "Only trainables/ imports torch and DeepSpeed"),
    (
        "search_spaces/tiny.py",
        "import deepspeed",
        "Only trainables/ imports torch and DeepSpeed",
    ),
    (
        "autotune/on_ray/nodes.py",
        "import rich",
        "Only the commands, their options and the report import click and rich",
    ),
    (
        "autotune/store/record.py",
        "import click",
        "Only the commands, their options and the report import click and rich",
    ),
    (
        "autotune/ledger/listeners.py",
        "import wandb",
        "Only autotune/loggers imports experiment trackers",
    ),
    ("autotune/cost/time.py", "import autotune.calibration.fit", "Data flows one way"),
    ("autotune/layout.py", "import autotune.space", "Data flows one way"),
    (
        "autotune/tuning.py",
        "import trainables.simulated",
        "Trainables and spaces build on the core, never the other way",
    ),
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scratch")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, folder / package)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    return folder


def linted(folder: Path) -> tuple[int, str]:
    process = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    )
    return process.returncode, process.stdout


def test_the_contracts_are_kept(scratch: Path) -> None:
    status, output = linted(scratch)
    assert status == 0, output


@pytest.mark.parametrize(("file", "statement", "contract"), FORBIDDEN)
def test_a_forbidden_import_breaks_its_contract(
    file: str, statement: str, contract: str, scratch: Path
) -> None:
    path = scratch / file
    before = path.read_text()
    path.write_text(f"{before}\n{statement}  # forbidden\n")
    try:
        status, output = linted(scratch)
    finally:
        path.write_text(before)
    assert status == 1
    assert f"{contract} BROKEN" in output


def test_a_new_folder_must_be_given_its_place(scratch: Path) -> None:
    folder = scratch / "autotune" / "novelty"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    try:
        status, output = linted(scratch)
    finally:
        shutil.rmtree(folder)
    assert status == 1 and "autotune.novelty" in output
