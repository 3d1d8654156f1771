"""The commands of docs/train.md are accepted as they stand there."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from autotune.options.command_line import command_line
from tests.conftest import REPOSITORY
from tests.trainables.training.launching import MODEL
from trainables.deepspeed_llm.options import specification
from trainables.deepspeed_llm.training import checkpoints
from trainables.deepspeed_llm.training.__main__ import main

PAGE = (REPOSITORY / "docs" / "train.md").read_text("utf-8")


def test_the_commands_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.zeros(100_000, "uint16").tofile("tokens.bin")
    np.save("validation.npy", np.zeros(2_000, int))
    fixed = ["--layout", "{}", "--model", json.dumps(MODEL), "--device", "cpu", "--dry-run"]
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for block in blocks:
        script, *options = shlex.split(block.replace("\\\n", " "))
        assert script == "./launch.sh"
        if "--resume-from" in options:
            spec = specification(
                layout="{}", model=json.dumps(MODEL), steps=10, memory_gib=None,
                synthetic_data=False, seed=0, device="cpu", gpu=None,
            )  # fmt: skip
            checkpoints.begin(Path("checkpoints"), 500)
            checkpoints.complete(Path("checkpoints"), 500, spec, keep=None)
        assert command_line(main, [*fixed, *options]) == 0
    assert len(blocks) == 2


def test_every_option_that_is_named_exists_and_no_other_is_missing() -> None:
    known = {parameter.opts[0] for parameter in main.params}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert named - known == {"--help", "--trial"}
    # launch.sh gives these itself, or they are for tests.
    given = {"--layout", "--model", "--device", "--gpu", "--deepspeed-config"}
    assert known - named == given | {"--memory-gib", "--synthetic-data", "--dry-run"}
