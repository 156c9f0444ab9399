"""What a sweep prints and writes: a result a task and method, and means over seeds."""

from safe_ray.report.summary import (
    Protocol,
    TaskResult,
    TestResult,
    ValidationResult,
    read_summary,
    write_summary,
)
from safe_ray.report.tables import print_table, write_report

__all__ = [
    "Protocol",
    "TaskResult",
    "TestResult",
    "ValidationResult",
    "print_table",
    "read_summary",
    "write_report",
    "write_summary",
]
