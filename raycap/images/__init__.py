"""Bytes to pixels, or a reason: a picture as a viewer shows it, in RGB, at the size that the
encoder wants.

Knows nothing of where bytes come from. Never raises for bad bytes; limits are checked before
pixels are decoded.
"""

from raycap.images.pixels import Interpolation, Resize
from raycap.images.reading import Picture, Reading, Square, read_picture, read_whole

__all__ = ["Interpolation", "Picture", "Reading", "Resize", "Square", "read_picture", "read_whole"]
