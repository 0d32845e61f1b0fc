"""The captioner that `raycap train` makes: an encoder, a decoder, a vocabulary and a search, in
one folder."""

from raycap.captioners.trained.captioner import Explanation, TrainedCaptioner
from raycap.captioners.trained.options import TrainedOptions
from raycap.captioners.trained.plan import CaptionerPlan

__all__ = ["CaptionerPlan", "Explanation", "TrainedCaptioner", "TrainedOptions"]
