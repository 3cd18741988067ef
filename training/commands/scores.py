"""What `willbuy train` and `willbuy evaluate` print of a report."""

from training.commands.console import ERR, OUT, print_line
from training.report.content import Report
from training.report.terminal import console_table
from training.report.verdict import verdict


def print_scores(report: Report) -> None:
    """Print the scores by prefix length, the verdict, and the reasons to doubt them."""
    OUT.print(console_table(report))
    for sentence in verdict(report):
        print_line(sentence)
    for warning in report.warnings:
        print_line(f"note: {warning}", style="yellow", console=ERR)
