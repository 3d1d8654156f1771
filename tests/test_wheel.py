"""The wheel, installed in an environment of its own and used from another directory."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, and with our dependencies but not this clone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves a folder build/ where it works
    for package in ("autotune", "trainables", "search_spaces"):
        shutil.copytree(REPOSITORY / package, source / package)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *offline, "-w", folder, source],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    site = folder / "env" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site / "site-packages")
    # A plain path entry: the .pth file of this clone's editable installation is not read there.
    (site / "site-packages" / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return python


def ran(python: Path, folder: Path, *arguments: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [python, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_everything_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import autotune, trainables, search_spaces as s; print(autotune.__file__, s.__file__)"
    for file in ran(installed, tmp_path, "-c", code).split():
        assert Path(file).is_relative_to(installed.parent.parent), file


def test_it_plans_searches_and_trains(installed: Path, tmp_path: Path) -> None:
    assert "Predicted" in ran(installed, tmp_path, "-m", "autotune.plan", "--space", "llm13b")
    search = ("-m", "autotune.run", "--space", "llm13b", "--max-trials", "2", "--no-dashboard")
    assert "simulated" in ran(installed, tmp_path, *search, "--out", "run")
    assert (tmp_path / "run" / "export" / "launch.sh").exists()
    ran(installed, tmp_path, "-m", "autotune", "export", "run", "--out", "exported")
    model = REPOSITORY / "examples" / "model.json"
    train = ("-m", "trainables.deepspeed_llm", "--layout", "{}", "--steps", "2", "--model", model)
    assert '"outcome": "ok"' in ran(installed, tmp_path, *train)


def test_it_is_typed_and_has_its_data(installed: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.resources import files; from autotune.hardware import known_devices, "
        "known_networks; print(len(known_devices()), len(known_networks()), "
        "(files('autotune') / 'py.typed').is_file())"
    )
    devices, networks, typed = ran(installed, tmp_path, "-c", code).split()
    assert int(devices) >= 8 and int(networks) >= 5 and typed == "True"
