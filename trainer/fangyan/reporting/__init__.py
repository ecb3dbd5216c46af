"""The report of a run, and of several beside each other: one HTML file that needs nothing else."""

from fangyan.reporting.page import write_report as write_report
