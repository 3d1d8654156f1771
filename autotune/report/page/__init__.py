"""The report of a run: one page for a browser, or text for a README or a pull request."""

from autotune.report.page.html import write_report
from autotune.report.page.markdown import markdown_report

__all__ = ["markdown_report", "write_report"]
