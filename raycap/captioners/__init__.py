"""Who writes captions. The trained captioner is the first kind."""

from raycap.captioners.trained import Alternative, Caption, Captioner, Explanation, Plan

__all__ = ["Alternative", "Caption", "Captioner", "Explanation", "Plan"]
