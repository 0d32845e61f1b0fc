"""What a captioner is made of, as options: everything but the weights and the words."""

from dataclasses import dataclass, field

from raycap.decoders import DecoderChoice, Ensemble, TopDown
from raycap.encoders import EncoderOptions, ResNet50
from raycap.images import Reading
from raycap.search import Beam, SearchChoice


@dataclass(frozen=True)
class CaptionerPlan:
    """The parts of a captioner."""

    encoder: EncoderOptions = field(default_factory=ResNet50)
    decoder: DecoderChoice | Ensemble = field(default_factory=TopDown)
    reading: Reading = field(default_factory=Reading)
    search: SearchChoice = field(default_factory=Beam)
