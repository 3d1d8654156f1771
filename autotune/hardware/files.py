"""JSON files that describe hardware: those of the folder `data`, and those of users."""

import importlib.resources
from collections.abc import Mapping
from typing import TypeVar

from autotune.errors import InputError
from autotune.inputs import json_object, read_text, shown, validated

T = TypeVar("T")


def from_json(kind: type[T], text: str, *, what: str) -> T:
    """The description in a file; `what` names it in errors. Raises InputError."""
    return validated(kind, json_object(text, what=what), what=what)


def shipped(kind: type[T], folder: str) -> dict[str, T]:
    """All descriptions in a folder of `data`, by the name of their file."""
    files = (importlib.resources.files(__package__) / "data" / folder).iterdir()
    return {
        file.name.removesuffix(".json"): from_json(
            kind, file.read_text(encoding="utf-8"), what=f"hardware {file.name}"
        )
        for file in sorted(files, key=lambda file: file.name)
    }


def named(kind: type[T], name: str, known: Mapping[str, T], *, what: str) -> T:
    """One of the `known` descriptions, or the one in the file NAME.json.

    Raises InputError; its sentence calls the description `what`.
    """
    if name.endswith(".json"):
        return from_json(kind, read_text(name), what=f"{what} file {shown(name)}")
    if name not in known:
        raise InputError(
            f"{what} must be one of {', '.join(known)} or a file NAME.json, got {shown(name)}"
        )
    return known[name]
