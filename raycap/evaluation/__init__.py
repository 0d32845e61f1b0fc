"""Evaluation: reads caption tables, matches them with references, scores and compares them."""

from raycap.evaluation.options import Evaluate, MetricOptions

__all__ = ["Evaluate", "MetricOptions"]
