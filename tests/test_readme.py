"""The commands of README.md and docs/usage.md are accepted as they stand there."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGES = {name: (REPOSITORY / name).read_text("utf-8") for name in ("README.md", "docs/usage.md")}


def commands(page: str) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGES[page], flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = [words[1] for words in commands("README.md") if words[0] == "make"]
    assert targets[:2] == ["run", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.parametrize(
    "words",
    list(
        {
            tuple(words): words
            for page in PAGES
            for words in commands(page)
            if words[0] == "python" and "--resume" not in words
        }.values()
    ),
    ids=" ".join,
)
def test_commands_run(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(tmp_path / "run") if word.startswith("runs/") else word for word in words[1:]]
    if "autotune.run" in arguments and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    if arguments[0] == "-m" and arguments[1].startswith("autotune."):
        # What `python -m` does, in this process: starting another takes a second.
        monkeypatch.chdir(REPOSITORY)
        monkeypatch.setattr(sys, "argv", arguments[1:])
        with pytest.raises(SystemExit) as exit:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        assert exit.value.code in (0, None)
        return
    process = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=REPOSITORY, timeout=120
    )
    assert process.returncode == 0, process.stderr


def test_every_option_that_is_named_exists() -> None:
    """Of the usage page, those of our own commands."""
    helps = "".join(
        subprocess.run(
            [sys.executable, "-m", *module, "--help"], capture_output=True, text=True, timeout=60
        ).stdout
        for module in (
            ("autotune.run",),
            ("autotune.plan",),
            ("autotune", "export"),
            ("autotune.calibrate",),
            ("autotune.probe",),
            ("trainables.deepspeed_llm",),
        )
    )
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", helps))
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGES["docs/usage.md"])):
        assert option in known, option


def test_python_examples_use_the_public_surface() -> None:
    import autotune

    for page, text in PAGES.items():
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            compile(block, page, "exec")
            for name in re.findall(r"autotune\.(\w+)", block):
                assert hasattr(autotune, name), name


def test_links_lead_somewhere() -> None:
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert ((REPOSITORY / page).parent / target).exists(), (page, target)
