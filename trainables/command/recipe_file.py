"""Reads the file of --command: TOML, or Python with a function `command()`."""

import json
import runpy
import tomllib
from pathlib import Path
from typing import Any

from autotune.cost.trainers import trainer_content
from autotune.errors import InputError, first_line, shortened
from autotune.inputs import read_text, shown
from autotune.user_code import run_user_code
from trainables.command.recipe import checked_trainer, recipe_of


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file, or what the function `command()` of a Python file returns, such
    as that of a space; checked, the directory made absolute, and the paths of `files` replaced by
    what those files hold. Raises InputError."""
    path = Path(path)
    text = read_text(path, what="command")
    if path.suffix == ".py":
        values = run_user_code(lambda: _command_of(path), what=f"command {shown(path)}")
    else:
        try:
            values = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise InputError(f"command: not valid TOML: {first_line(error)}") from None
    directory = values.get("directory", ".")
    if isinstance(directory, str):  # else it is refused below
        folder = (path.resolve().parent / directory).resolve()
        if not folder.is_dir():
            raise InputError(f"command: directory must be a folder, got {shown(str(folder))}")
        values = {**values, "directory": str(folder)}
        if isinstance(files := values.get("files"), dict):
            values["files"] = {name: _text_of(name, file, folder) for name, file in files.items()}
        trainer = values.get("trainer")
        if isinstance(trainer, str) and trainer.endswith(".json"):
            values["trainer"] = trainer_content(checked_trainer(str(path.parent / trainer)))
    recipe_of(values)
    return values


def _text_of(name: str, file: object, folder: Path) -> object:
    """The text of one of `files`; what is no path is left for the recipe to refuse."""
    if not isinstance(file, str):
        return file
    return read_text(folder / file, what=f"command: files.{shortened(name)}")


def _command_of(path: Path) -> dict[str, Any]:
    make = runpy.run_path(str(path)).get("command")
    if not callable(make):
        raise InputError(f"must define a function command(), got {shown(make)}")
    # Only what JSON can say is stored with the run: tuples become lists.
    made: object = json.loads(json.dumps(make()))
    if not isinstance(made, dict):
        raise InputError(f"command() must return a dictionary, got {shown(made)}")
    return made
