"""Turns the bytes of a picture into RGB pixels, as a viewer shows them, or into a reason why not.

Never raises for bad bytes. Limits are checked before pixels are decoded.
"""

from raycap.images.intake import Encoded, Fit, Intake, Square, SquareOrJpeg
from raycap.images.pixels import Interpolation, Resize
from raycap.images.reading import Picture, Reading, read_picture, read_whole

__all__ = [
    "Encoded",
    "Fit",
    "Intake",
    "Interpolation",
    "Picture",
    "Reading",
    "Resize",
    "Square",
    "SquareOrJpeg",
    "read_picture",
    "read_whole",
]
