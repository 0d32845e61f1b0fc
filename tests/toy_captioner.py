"""A second kind of captioner, as somebody outside the package would write it: "PICTURE 60X48"."""

from dataclasses import dataclass

from raycap.captioners import Captioner, CaptionerOptions, Prediction
from raycap.images import Square


@dataclass(frozen=True)
class SizeOptions(CaptionerOptions):
    word: str = "picture"

    def identity(self):
        return {"captioner": f"size, {self.word}"}

    def intake(self):
        return Square(16)

    def open(self, device, threads):
        return SizeCaptioner(self)


class SizeCaptioner(Captioner):
    def __init__(self, options):
        super().__init__(options.intake())
        self.word = options.word

    def predict(self, pictures, rows):
        texts = [f"{self.word} {row['width']}x{row['height']}" for row in rows]
        return [Prediction(text.upper()) for text in texts]
