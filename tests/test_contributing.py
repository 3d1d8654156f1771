"""The files that the recipes of CONTRIBUTING.md name are there."""

import re

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]


def test_there_is_a_recipe_for_whatever_is_declared() -> None:
    subjects = ("dimension", "architecture", "search", "trainable", "export")
    subjects += ("logger", "hardware", "fault")
    assert len(RECIPES) == len(subjects)
    for subject, recipe in zip(subjects, RECIPES, strict=True):
        assert subject in recipe.splitlines()[0]


def test_every_file_and_folder_that_a_recipe_names_is_there() -> None:
    for recipe in RECIPES:
        named = re.findall(r"`([\w.-]+(?:/[\w.-]*)+|[\w-]+\.(?:md|toml))`", recipe)
        assert named, recipe
        for name in named:
            assert (REPOSITORY / name).exists(), name


def test_every_target_that_is_named_is_in_the_makefile() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", PAGE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
