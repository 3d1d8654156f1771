"""Search spaces by name, or from Python files of the user."""

import importlib
import os
import pkgutil
import runpy
from collections.abc import Callable
from typing import Any

import pydantic

from autotune.errors import AutotuneError, InputError, in_field
from autotune.inputs import first_problem
from autotune.space import SearchSpace


def available_spaces() -> list[str]:
    """Names of the spaces that ship with the project."""
    package = importlib.import_module("search_spaces")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load_space(name_or_file: str) -> SearchSpace:
    """A space by name, or by the path of a Python file with a function `space()`.

    The file is executed with the user's rights. Raises InputError.
    """
    with in_field("space"):
        return _load_space(name_or_file)


def _load_space(name_or_file: str) -> SearchSpace:
    if name_or_file.endswith(".py"):
        if not os.path.isfile(name_or_file):
            raise InputError(f"no such file: {name_or_file!r}")
        # Unlike an import, this writes no compiled file next to it.
        make = _run_user_code(lambda: runpy.run_path(name_or_file), name_or_file).get("space")
    else:
        names = available_spaces()
        if name_or_file not in names:
            raise InputError(
                f"must be one of {', '.join(names)} or a file FILE.py, got {name_or_file!r}"
            )
        make = importlib.import_module(f"search_spaces.{name_or_file}").space
    if not callable(make):
        raise InputError(f"{name_or_file} must define a function space(), got {make!r}")
    space = _run_user_code(make, name_or_file)
    if not isinstance(space, SearchSpace):
        raise InputError(
            f"{name_or_file}: space() must return a SearchSpace, got {type(space).__name__}"
        )
    return space


def _run_user_code(code: Callable[[], Any], what: str) -> Any:
    """Call code that the user wrote and return its result; its exceptions become InputError."""
    try:
        return code()
    except AutotuneError as error:
        raise InputError(f"{what}: {error}") from None
    except pydantic.ValidationError as error:
        raise InputError(f"{what}: {error.title}: {first_problem(error)}") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"{what}: {type(error).__name__}: {error}") from error
