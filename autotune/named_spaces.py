"""Search spaces by name, or from Python files of the user."""

import importlib
import pkgutil
import runpy
import types
from typing import Any

import pydantic

from autotune.errors import InputError, in_field, shortened
from autotune.inputs import LARGEST_TEXT, opened, shown
from autotune.space import SearchSpace
from autotune.user_code import run_user_code


def available_spaces() -> list[str]:
    """Names of the spaces that ship with the project."""
    package = importlib.import_module("search_spaces")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load_space(name_or_file: str) -> SearchSpace:
    """A space by name, or by the path of a Python file with a function `space()`.

    The file is executed with the user's rights. Raises InputError.
    """
    with in_field("space"):
        if name_or_file.endswith(".py"):
            return _from_file(name_or_file)
        names = available_spaces()
        if name_or_file not in names:
            raise InputError(
                f"must be one of {', '.join(names)} or a file FILE.py, got {shown(name_or_file)}"
            )
        space: SearchSpace = importlib.import_module(f"search_spaces.{name_or_file}").space()
        return space


def _from_file(file: str) -> SearchSpace:
    with opened(file, largest=LARGEST_TEXT):
        pass  # it is a file, and can be read
    return run_user_code(lambda: _space_of(file), what=shortened(file))


def _space_of(file: str) -> SearchSpace:
    # Unlike an import, this writes no compiled file next to it.
    make = runpy.run_path(file).get("space")
    if not callable(make):
        raise InputError(f"must define a function space(), got {shown(make)}")
    made: Any = make()
    if type(made) is types.CoroutineType:
        made.close()  # or Python warns that it was never awaited
    if type(made) is not SearchSpace:
        raise InputError(f"space() must return a SearchSpace, got {type(made).__name__}")
    # Its fields may have been changed since they were checked.
    adapter = pydantic.TypeAdapter(SearchSpace)
    return adapter.validate_python(adapter.dump_python(made, warnings=False))
