"""A captioner for tests: real in every part, small, and untrained, so that its captions differ and
mean nothing."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from raycap.captioners.trained import CaptionerPlan, TrainedCaptioner
from raycap.decoders import Recurrent
from raycap.encoders import Pixels
from raycap.vocabulary import Vocabulary, VocabularyOptions

SENTENCES = (
    "a brown dog runs over the wet grass",
    "two men sit on a red bench",
    "the child plays with water near a big tree",
    "black cat sleeps under blue table",
)


def save_captioner(path: Path, seed: int = 0) -> TrainedCaptioner:
    """Write the folder; the same seed gives the same captioner."""
    vocabulary = Vocabulary.build(SENTENCES, VocabularyOptions(min_count=1))
    options = Recurrent(hidden_width=32, embedding_width=16, attention_width=16)
    plan = CaptionerPlan(encoder=Pixels(size=64), decoder=options)
    encoder = plan.encoder.build()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = options.build(len(vocabulary), encoder.positions, encoder.width)
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.mul_(4)  # surer of its words, so that pictures differ in their captions
    captioner = TrainedCaptioner(plan, vocabulary, encoder, decoder, device="cpu")
    captioner.save(path)
    return captioner


def photos(folder: Path, numbers: range, size: int = 1) -> Path:
    """Pictures that all differ, in colour and in shape; a larger `size` takes longer to decode."""
    folder.mkdir(exist_ok=True, parents=True)
    for number in numbers:
        chance = np.random.default_rng(number)
        coarse = chance.integers(0, 255, (4, 5, 3), np.uint8)
        picture = Image.fromarray(coarse).resize(
            ((60 + number % 7) * size, 48 * size), Image.Resampling.BICUBIC
        )
        picture.save(folder / f"{number:05d}.png", compress_level=1)
    return folder
