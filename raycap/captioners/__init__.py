"""Who writes captions: the protocol of every captioner, and its implementations."""

from raycap.captioners.asynchronous import AsyncCaptioner
from raycap.captioners.protocol import (
    Alternative,
    Caption,
    Captioner,
    CaptionerOptions,
    Placement,
    Prediction,
)

__all__ = [
    "Alternative",
    "AsyncCaptioner",
    "Caption",
    "Captioner",
    "CaptionerOptions",
    "Placement",
    "Prediction",
]
