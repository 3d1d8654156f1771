"""Export of a layout to other programs, which then train it without the tuner.

Each module of this folder is an export format with the module's name. It has one function,
``write(directory, layout, request)``, which writes the files into an existing directory.
"""

import importlib
import pkgutil
from pathlib import Path

from autotune.errors import InputError
from autotune.inputs import shown
from autotune.layout import Layout
from autotune.request import Request

DEFAULT_FORMAT = "deepspeed"
"""The format that a search exports to automatically."""


def formats() -> list[str]:
    """Names of all formats, sorted; underscores of module names become dashes."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def export_layout(
    directory: Path, layout: Layout, request: Request, form: str = DEFAULT_FORMAT
) -> None:
    """Write the layout into `directory`, which is made if it is not there.

    Raises InputError for an unknown format and for a request that cannot be exported.
    """
    if form not in formats():
        raise InputError(
            f"must be one of {', '.join(formats())}, got {shown(form)}", field="format"
        )
    if not request.description.exportable:
        raise InputError(f"{request.trainable} trials cannot be exported", field="trainable")
    directory.mkdir(parents=True, exist_ok=True)
    importlib.import_module(f"{__name__}.{form.replace('-', '_')}").write(
        directory, layout, request
    )
