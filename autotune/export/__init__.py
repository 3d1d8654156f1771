"""Export of a layout to other programs, which then train it without the tuner.

Each module of this folder is an export format with the module's name, declared as ``FORMAT``;
modules whose names begin with an underscore are what the formats share.
"""

import importlib
import pkgutil
from pathlib import Path

from autotune.errors import InputError
from autotune.export._format import Export, Format
from autotune.inputs import shown
from autotune.layout import Layout
from autotune.request import Request
from autotune.store.files import write_atomically

__all__ = ["Export", "Format", "default_format", "export_layout", "format_named", "formats"]


def formats() -> list[str]:
    """Names of all formats, sorted; underscores of module names become dashes."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))


def format_named(name: str) -> Format:
    """The format of that name. Raises InputError."""
    if name not in formats():
        raise InputError(
            f"must be one of {', '.join(formats())}, got {shown(name)}", field="format"
        )
    declared = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").FORMAT
    assert isinstance(declared, Format)
    return declared


def default_format(request: Request) -> str:
    """The format that starts the training code of the trials. Raises InputError."""
    name = request.description.export_format
    if name is None:
        raise InputError(
            f"must be given, because no format starts the training code of {request.trainable} "
            f"trials (one of {', '.join(_offered(request))})",
            field="format",
        )
    return name


def export_layout(directory: Path, layout: Layout, request: Request, form: str) -> Export:
    """Write the layout into `directory`, which is made if it is not there.

    Raises InputError for an unknown format, and for trials, layouts and models that it cannot
    express; nothing is written then.
    """
    declared = format_named(form)
    if declared.starts_trainable and form != request.description.export_format:
        raise InputError(
            f"format {form} does not start the training code of {request.trainable} trials; "
            f"formats for them: {', '.join(_offered(request))}"
        )
    exported = declared.export(layout, request)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in exported.files.items():
        _write(directory / name, content)
    return exported


def _offered(request: Request) -> list[str]:
    own = request.description.export_format
    return [name for name in formats() if name == own or not format_named(name).starts_trainable]


def _write(path: Path, content: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(content, "utf-8"))
    if path.suffix == ".sh":
        path.chmod(0o755)
