"""How good captions are: reading caption tables and references, lining them up, judging, comparing. Pure."""

from raycap.evaluation.options import Evaluate, MetricOptions

__all__ = ["Evaluate", "MetricOptions"]
