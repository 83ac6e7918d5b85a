"""Reports: results of models, studies and advice as one HTML page, or as Markdown."""

from embedlm.studies.report.page import page
from embedlm.studies.report.panels import Panel, Table
from embedlm.studies.report.writing import check_outputs, read_found, report, write_report

__all__ = ["Panel", "Table", "check_outputs", "page", "read_found", "report", "write_report"]
