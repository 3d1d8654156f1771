"""Charts as Vega-Lite specifications, one module per subject.

A chart has no background and no colours of text, so that it can be shown light and dark.
"""

from autotune.report.charts.files import CHART_SUFFIXES, write_chart

__all__ = ["CHART_SUFFIXES", "write_chart"]
