"""Writes a chart as a file: a picture, or a page that holds all that it needs."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from autotune.errors import InputError
from autotune.output_paths import refuse_impossible_file
from autotune.report.charts.style import Mode, config
from autotune.store.files import write_atomically

CHART_SUFFIXES = (".svg", ".png", ".html")
_PAPER = {"light": "#ffffff", "dark": "#16191d"}
_PNG_SCALE = 2.0

Datasets = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows by the name that charts give their data."""


def refuse_chart_file(path: Path, *, field: str) -> None:
    """Raise InputError where no chart can be written to the path."""
    if path.suffix not in CHART_SUFFIXES:
        raise InputError(f"must end in {', '.join(CHART_SUFFIXES)}, got {str(path)!r}", field=field)
    try:
        refuse_impossible_file(path)
    except InputError as error:
        raise InputError(str(error), field=field) from None


def write_chart(
    chart: Any, path: Path, *, datasets: Datasets | None = None, mode: Mode = "light"
) -> None:
    """Write an Altair chart in the format of the path's suffix (`CHART_SUFFIXES`).

    A file that is there is replaced. Raises OSError.
    """
    spec = standalone(chart, datasets or {}, mode)
    if path.suffix == ".svg":
        content = vl_convert.vegalite_to_svg(spec).encode()
    elif path.suffix == ".png":
        content = vl_convert.vegalite_to_png(spec, scale=_PNG_SCALE)
    else:
        content = vl_convert.vegalite_to_html(spec, bundle=True).encode()
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def standalone(chart: Any, datasets: Datasets, mode: Mode) -> dict[str, Any]:
    """The specification of a chart with its data and the colours of a light or dark page."""
    spec: dict[str, Any] = copy.deepcopy(chart.to_dict(validate=False))
    spec["datasets"] = {**spec.get("datasets", {}), **datasets}
    spec["config"] = {**config(mode), "background": _PAPER[mode]}
    return spec
