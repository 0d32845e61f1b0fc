"""A trained captioner: pictures in, captions out, and one self-describing folder to keep it in."""

from raycap.captioners.trained.caption import Alternative, Caption, Explanation
from raycap.captioners.trained.captioner import Captioner
from raycap.captioners.trained.plan import Plan

__all__ = ["Alternative", "Caption", "Captioner", "Explanation", "Plan"]
