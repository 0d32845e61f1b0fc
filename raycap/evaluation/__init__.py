"""How good captions are: caption tables are read, matched with references, scored and compared."""

from raycap.evaluation.options import Evaluate, MetricOptions

__all__ = ["Evaluate", "MetricOptions"]
