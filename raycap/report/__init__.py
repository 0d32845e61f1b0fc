"""HTML reports of caption tables, training runs and sweeps, each one self-contained file."""

from raycap.report.options import Report

__all__ = ["Report"]
