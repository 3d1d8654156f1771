"""What the pages of the documentation name exists: options, Python names, files."""

import ast
import importlib
import re

import click
import pytest

import autotune
from autotune.__main__ import autotune as autotune_command
from tests.conftest import REPOSITORY
from tests.docs.shell import PAGES

TEXTS = {str(page.relative_to(REPOSITORY)): page.read_text("utf-8") for page in PAGES}
OTHER_COMMANDS = (
    "benchmarks.foreign_trainer",
    "benchmarks.gpu",
    "trainables.deepspeed_llm.__main__",
    "trainables.deepspeed_llm.training.__main__",
)
# Options of other programs that the pages name.
FOREIGN = {
    "docs/clusters.md": {"--exclusive", "--tmux"},
    "docs/security.md": {"--generate", "--head", "--node-ip-address"},
    "docs/your-script.md": {"--local-ranks-filter"},
}


def known_options() -> set[str]:
    """Of all commands of the project."""
    context = click.Context(autotune_command)
    names = autotune_command.list_commands(context)
    commands = [autotune_command.get_command(context, name) for name in names]
    commands += [importlib.import_module(module).main for module in OTHER_COMMANDS]
    known = {"--help", "--version"}
    for command in commands:
        assert command is not None
        for parameter in command.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    return known


@pytest.mark.parametrize("page", TEXTS)
def test_every_option_that_is_named_exists(page: str) -> None:
    prose = re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)  # commands are parsed elsewhere
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose))
    assert named - known_options() == FOREIGN.get(page, set[str]())


@pytest.mark.parametrize("page", TEXTS)
def test_python_examples_use_the_public_surface(page: str) -> None:
    for block in re.findall(r"```python\n(.*?)```", TEXTS[page], flags=re.DOTALL):
        for node in ast.walk(ast.parse(block, page)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "autotune":
                assert hasattr(autotune, node.attr), node.attr


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    """As in a clone; the links of the site are checked when it is built."""
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", TEXTS[page]):
        assert ((REPOSITORY / page).parent / target).exists(), target


def test_every_public_name_is_on_the_page_of_python() -> None:
    documented = re.findall(r"^::: autotune\.(?:\w+\.)*(\w+)$", TEXTS["docs/api.md"], re.MULTILINE)
    assert sorted(documented) == sorted(set(autotune.__all__) - {"__version__"})
