"""Pages to look at, each one self-contained HTML file: caption tables, training runs, sweeps."""

from raycap.report.options import Report

__all__ = ["Report"]
