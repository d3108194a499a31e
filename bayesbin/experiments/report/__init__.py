"""A trained run on one HTML page: its scores, its pictures, and how to read them."""

from bayesbin.experiments.report.findings import Findings, OtherFindings
from bayesbin.experiments.report.writing import Report, report

__all__ = ["Findings", "OtherFindings", "Report", "report"]
