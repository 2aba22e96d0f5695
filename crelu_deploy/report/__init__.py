"""One page per bundle: how exact and how fast its targets are."""

from __future__ import annotations

from crelu_deploy.report.record import FORMAT, collect, read_report, save_report, write_report

__all__ = ["FORMAT", "collect", "read_report", "save_report", "write_report"]
