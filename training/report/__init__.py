"""What predictions came to, for people: a table in the terminal, one HTML page, and the same as JSON."""

from training.config import Assumptions
from training.report.build import FEW_BUYERS, build_report
from training.report.content import Histogram, Report, write_json
from training.report.page import write_html
from training.report.terminal import console_table

__all__ = [
    "FEW_BUYERS",
    "Assumptions",
    "Histogram",
    "Report",
    "build_report",
    "console_table",
    "write_html",
    "write_json",
]
