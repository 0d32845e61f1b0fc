"""Makes the captioner that ships: weights in int8, neighbours without texts, its search, what it
is not sure of, its card.

    raycap train data/flickr8k --config configs/compact.yaml         # an hour on two processors
    python benchmarks/quality/features.py KEPT --captioner runs/compact/captioner
    python benchmarks/quality/ship.py KEPT FOLDER --captioner runs/compact/captioner

Photos of dev are encoded again with the rounded weights, into KEPT/rounded. So the scores of the
card are those of the captioner as it ships.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from candidates import parser, read_captioner
from consensus import encoded
from features import encode_set, read_set
from unsure import chosen_captions

from raycap.captioners.trained import TrainedCaptioner
from raycap.captioners.trained.doubt import fit_doubt
from raycap.captioners.trained.neighbours import build_neighbours
from raycap.metrics import METRICS, Corpus, Score, interval
from raycap.search import Beam
from raycap.sources import Flickr

SEARCH = Beam(
    width=5, max_length=20, no_repeat_ngram=2, no_stutter=True, consensus=4.0, fusion=3.0
)
NOT_SURE_OF = 0.1  # of the captions of dev
METRIC_NAMES = ("bleu", "rouge_l", "cider_d", "health")
SCORES = ("bleu_1", "bleu_4", "rouge_l", "cider_d", "distinct", "vocabulary")
HOW = (
    "`raycap evaluate shipped --references data/flickr8k --split dev`; 95% intervals from "
    "resampled pictures"
)
FACTS: dict[str, Any] = {
    "name": "The captioner that ships with raycap",
    "data": {
        "captions and photos": "Flickr8k (Hodosh, Young and Hockenmaier 2013): 6,000 photos with "
        "five captions each to learn from, 1,000 (dev) to choose by; the test split was never "
        "looked at",
        "encoder": "torchvision's MobileNetV2, IMAGENET1K_V1, learned from ImageNet; frozen here",
    },
    "licence": [
        "the encoder: BSD-3-Clause, as torchvision; ImageNet is for non-commercial research",
        "the decoder: learned from Flickr8k, whose owners allow research and education only; the "
        "photos belong to their Flickr authors. Use it likewise",
        "the training photos that it remembers: 128 numbers and hashed n-grams of the captions of "
        "each, no photo and no text",
    ],
    "training": {
        "recipe": "configs/compact.yaml: 25 epochs of cross-entropy (the 20th was the best), then "
        "12 of self-critical training on CIDEr-D (the 7th was the best)",
        "pictures in a step": 32,
        "learning rate": "8e-4, then 5e-5",
        "seed": 0,
        "chosen by": "CIDEr-D on dev; so were the weights of consensus and fusion",
        "time": "57 minutes on two processors that had other work too",
        "numbers": "int8 in the file, with one scale for each row of a matrix",
    },
    "use": "To try raycap, and as a baseline. Not for describing people, not for the blind to "
    "rely on, not for moderation, nor for any decision about anybody.",
}
LIMITS = [
    "it has seen people, dogs, sport, water, snow and streets, and sees them in everything else: "
    "food, rooms, cats, birds, vehicles and text are named wrongly. It is not sure of some of "
    "these, and the flag not_sure says so; of others it is",
    "it says no more than some {words} different words",
    "counts, colours, sides and what hands hold are often wrong; now and then the grammar breaks",
    "men and women, and what people do, are guessed by what was usual in the training photos, "
    "with their biases",
    "it looks at 224 by 224 pixels, squashed: small things and wide panoramas are lost",
]
# Samples that it misreads, and what is on them.
FAILURES = {
    "food.jpg": "carrots on a plate",
    "bear.jpg": "a bear",
    "children.jpg": "two girls with goats",
    "baseball.jpg": "a batter at a baseball game",
}


def main() -> None:
    data = Path(os.environ.get("RAYCAP_DATA", "data"))
    arguments = parser(__doc__)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--flickr8k", default=str(data / "flickr8k"))
    arguments.add_argument("--samples", type=Path, default=Path("samples"))
    options = arguments.parse_args()
    trained, _ = read_captioner(options)
    rounded_folder = options.kept / "rounded"
    trained.save(rounded_folder / "captioner", include_encoder=True, numbers="int8")
    rounded = TrainedCaptioner.read(rounded_folder / "captioner", "cpu", "fp32")
    source = Flickr(path=options.flickr8k)
    encode_set(rounded, source, "dev", rounded_folder, "dev", mirror=False, keeps_grids=True)

    training, dev = read_set(options.kept, "train"), read_set(rounded_folder, "dev")
    captions = encoded(rounded.vocabulary, training)
    neighbours = build_neighbours(training.vectors, captions).calibrated(dev.vectors)
    chosen = chosen_captions(rounded_folder, "dev", rounded, SEARCH, neighbours)
    is_wrong = chosen.cider <= np.quantile(chosen.cider, 0.25)
    doubt = fit_doubt(chosen.signs, is_wrong, NOT_SURE_OF)
    doubted = doubt.chance(chosen.signs) >= doubt.threshold
    print(f"{doubt}; {is_wrong[doubted].mean():.0%} of the captions that it doubts are wrong")

    corpus = Corpus(chosen.captions, dev.references)
    found = {
        score.name: score for name in METRIC_NAMES for score in METRICS[name]().compute(corpus)
    }
    scores = {f"{found[name].facts.label} on dev": _said(found[name]) for name in SCORES}
    rounded.plan = replace(rounded.plan, search=SEARCH)
    rounded.neighbours = replace(neighbours, doubt=doubt)
    samples = {path.name: path for path in sorted(options.samples.glob("*.jpg"))}
    loaded = rounded.load_pictures(list(samples.values()))
    pixels = [one.pixels for one in loaded if one.pixels is not None]
    for name, said in zip(samples, rounded.predict(pixels, [{}] * len(pixels)), strict=True):
        known = {key: round(said.extras[key], 2) for key in ("unfamiliar", "agreement", "doubt")}
        print(f"{name}: {said.caption} {said.score:.2f} {known} {said.flags}")
    failures = rounded.caption([samples[name] for name in FAILURES])
    rounded.facts = FACTS | {
        "scores": scores | {"how": HOW},
        "limits": [one.format(words=10 * round(found["vocabulary"].value / 10)) for one in LIMITS],
        "failures": [
            f'samples/{name}, {what}: "{one.caption}"'
            for (name, what), one in zip(FAILURES.items(), failures, strict=True)
        ],
    }
    rounded.save(options.out, include_encoder=True, numbers="int8")


def _said(score: Score) -> str:
    between = interval(score)
    if between is None:
        return f"{score.value:.4g}"
    low, high = between
    return f"{score.value:.4f} [{low:.4f}, {high:.4f}]"


if __name__ == "__main__":
    main()
