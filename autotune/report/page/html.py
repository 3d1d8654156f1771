"""Writes report.html: one file that needs no network, light and dark, also on a phone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from autotune.report.charts.style import config
from autotune.report.charts.trials import TRIALS, trial_rows
from autotune.report.facts import RunFacts, notices, state
from autotune.report.page.content import sections, title
from autotune.report.plan import headline
from autotune.store.files import write_atomically

_TEMPLATE = "report.html.jinja"
# Drawing each point as an element of the page takes seconds for thousands of them.
_MOST_TRIALS_AS_SVG = 150


def write_report(facts: RunFacts, file: Path) -> None:
    """Write the page, replacing one that is there. Raises OSError."""
    text = html_report(facts)
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def html_report(facts: RunFacts) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autotune.report.page", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(_TEMPLATE).render(
        title=title(facts),
        headline=headline(facts.space),
        state=state(facts),
        notices=notices(facts),
        sections=sections(facts),
        spec=_spec,
        datasets={TRIALS: trial_rows(facts)},
        configs={"light": config("light"), "dark": config("dark")},
        renderer="svg" if len(facts.records) <= _MOST_TRIALS_AS_SVG else "canvas",
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        to_script=_to_script,
    )


def _spec(chart: Any) -> dict[str, Any]:
    """The specification of a chart, without the colours that Altair adds."""
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec.pop("config", None)
    return spec


def _to_script(value: Sequence[Any] | dict[str, Any]) -> str:
    """JSON that can stand in a script element, whatever its texts hold."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
