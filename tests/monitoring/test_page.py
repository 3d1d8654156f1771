"""docs/monitoring.md and the example's page say what there is."""

import re
import shlex
from pathlib import Path

import pytest

from autotune.commands.run import main
from autotune.loggers import LOGGERS
from autotune.on_ray.metrics import METRICS
from autotune.options.command_line import command_line
from tests.conftest import REPOSITORY
from tests.monitoring.conftest import EXAMPLES

PAGE = REPOSITORY / "docs" / "monitoring.md"
PAGES = (PAGE, EXAMPLES / "README.md")


def commands(page: Path) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
    lines = "\n".join(blocks).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_table_of_metrics_is_complete() -> None:
    named = re.findall(r"^\| `(ray_autotune_\w+)`", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    assert named == [metric.exported_name for metric in METRICS]


def test_the_table_of_loggers_is_complete() -> None:
    text = PAGE.read_text("utf-8")
    for name, logger in LOGGERS.items():
        assert re.search(rf"^\| `{name}` \|.*`{logger.package}`", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "words",
    [words for page in PAGES for words in commands(page) if words[:2] == ["autotune", "run"]],
    ids=" ".join,
)
def test_searches_are_accepted(words: list[str], tmp_path: Path) -> None:
    if "--resume" in words:
        names = {option for parameter in main.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= names
        return
    arguments = [str(tmp_path / "run") if word.startswith("runs/") else word for word in words[2:]]
    assert command_line(main, [*arguments, "--dry-run"]) == 0


def test_files_and_links_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), (page, target)
        for words in commands(page):
            for word in words:
                path = word.rpartition("=")[2]
                if path.startswith("examples/"):
                    assert (REPOSITORY / path).exists(), path
