"""A trained captioner: pictures in, captions out, and one self-describing folder to keep it in."""

from raycap.captioner.caption import Alternative, Caption, Explanation
from raycap.captioner.captioner import Captioner
from raycap.captioner.plan import Plan

__all__ = ["Alternative", "Caption", "Captioner", "Explanation", "Plan"]
