"""Pages to look at: one self-contained HTML file for caption tables, alone or side by side, or a training run."""

from raycap.report.options import Report

__all__ = ["Report"]
