"""What neighbours gain on dev, and what they cost.

    python benchmarks/quality/features.py KEPT
    python benchmarks/quality/consensus.py KEPT [--captioner shipped]
        [--candidates 3,0 5,0 5,0,3 10,20] [--neighbours human own] [--mirror] [--meteor]

For each set of candidates (beams, drawn captions, weight of fusion) the weight of consensus is
chosen by CIDEr-D on one half of dev, and the other half is scored with it, in both directions:
`held out`. Gains are over the captioner's own search without neighbours, with a 95% paired
bootstrap interval.

Neighbours: `human` remembers the human captions of the training photos, `own` captions that the
captioner wrote for them (own_captions.py). `--nearest` photos count, the more similar ones for
more, or with `--alike` all the same. N-grams that fewer than `--fewest` photos have are left out.
`--exact` measures agreement by CIDEr-D with their whole captions, all alike, and not by vectors of
n-grams.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from candidates import candidates_of, parser, processor_ms, read_captioner, with_counts
from features import PhotoSet, read_set
from own_captions import own_captions

from raycap.captioners.trained.consensus import per_word
from raycap.captioners.trained.gram_vectors import FEWEST_PHOTOS, build_gram_vectors
from raycap.captioners.trained.neighbours import (
    NEAREST,
    WIDTH,
    Floats,
    Neighbours,
    build_neighbours,
    to_file,
)
from raycap.metrics import METRICS, Corpus, Score, compare, tokenise
from raycap.metrics.consensus import CiderConsensus
from raycap.metrics.corpus import to_numbers
from raycap.search import Hypothesis
from raycap.vocabulary import Vocabulary

WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0)
Each = Sequence[Sequence[Hypothesis]]


def encoded(vocabulary: Vocabulary, photos: PhotoSet) -> list[list[list[int]]]:
    """The human captions as token numbers, without `<start>` and `<end>`."""
    return [[vocabulary.encode(text)[1:-1] for text in texts] for texts in photos.references]


def agreements(
    candidates: Each,
    neighbours: Neighbours,
    vectors: Floats,
    nearest: int = NEAREST,
    alike: bool = False,
) -> list[Floats]:
    """Of each photo's candidates with its neighbours, which all count the same if `alike`."""
    return [
        neighbours.agreement(
            [one.words for one in each], rows, 0 * likeness if alike else likeness
        )
        for each, rows, likeness in zip(
            candidates, *neighbours.nearest(vectors, nearest), strict=True
        )
    ]


def exact_agreements(
    candidates: Each,
    neighbours: Neighbours,
    vectors: Floats,
    nearest: int,
    captions: Sequence[Sequence[Sequence[int]]],
) -> list[Floats]:
    """The CIDEr-D of each photo's candidates against the captions of its neighbours, all alike."""
    consensus = CiderConsensus(captions)
    return [
        consensus([one.words for one in each], rows)
        for each, rows in zip(candidates, neighbours.nearest(vectors, nearest)[0], strict=True)
    ]


def values(
    candidates: Each, photos: PhotoSet, decode: Callable[[Sequence[int]], str]
) -> list[Floats]:
    """The CIDEr-D of each photo's candidates, by its references."""
    numbers: dict[str, int] = {}

    def tokens(texts: Sequence[str]) -> list[list[int]]:
        return [to_numbers(text.split(), numbers) for text in tokenise(texts)]

    reward = CiderConsensus([tokens(texts) for texts in photos.references])
    return [
        reward(tokens([decode(one.words) for one in each]), np.array([photo]))
        for photo, each in enumerate(candidates)
    ]


def choose(candidates: Each, agreement: Sequence[Floats], weight: float) -> list[int]:
    """Which candidate of each photo ranks first."""
    chosen = []
    for each, own in zip(candidates, agreement, strict=True):
        ranks = per_word(each) + weight * own
        ranks[[not one.finished for one in each]] -= 1e6
        chosen.append(int(np.argmax(ranks)))
    return chosen


def score(texts: Sequence[str], photos: PhotoSet, *metrics: str) -> dict[str, Score]:
    """Scores of captions, by name."""
    corpus = Corpus(list(texts), photos.references)
    found = [one for metric in metrics for one in METRICS[metric]().compute(corpus)]
    return {one.name: one for one in found}


def line(
    name: str,
    texts: Sequence[str],
    photos: PhotoSet,
    before: dict[str, Score],
    metrics: Sequence[str],
) -> dict[str, Score]:
    """Print the scores of captions beside those of before; returns them."""
    scores = score(texts, photos, *metrics)
    gain = compare(scores["cider_d"], (before or scores)["cider_d"])
    meteor = f" METEOR {scores['meteor'].value:.4f}" if "meteor" in scores else ""
    print(
        f"{name:44} BLEU-4 {scores['bleu_4'].value:.4f} CIDEr-D {scores['cider_d'].value:.4f} "
        f"({gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]){meteor} "
        f"distinct {scores['distinct'].value:.1%} words {scores['vocabulary'].value:.0f}",
        flush=True,
    )
    return scores


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--candidates", nargs="*", default=["3,0", "5,0", "5,0,3", "10,20"])
    arguments.add_argument("--neighbours", nargs="*", default=["human"], choices=("human", "own"))
    arguments.add_argument("--width", nargs="*", type=int, default=[WIDTH])
    arguments.add_argument("--nearest", nargs="*", type=int, default=[NEAREST])
    arguments.add_argument("--alike", action="store_true")
    arguments.add_argument("--fewest", type=int, default=FEWEST_PHOTOS)
    arguments.add_argument("--exact", action="store_true")
    arguments.add_argument("--own-captions", type=int, default=3, help="of each training photo")
    arguments.add_argument("--own-candidates", default="3,0", help="beams, drawn")
    arguments.add_argument("--mirror", action="store_true", help="also the mean of both features")
    arguments.add_argument("--meteor", action="store_true", help="takes Java")
    options = arguments.parse_args()
    captioner, search = read_captioner(options)
    decode = captioner.vocabulary.decode
    metrics = ["bleu", "cider_d", "health", *(["meteor"] if options.meteor else [])]
    dev, training = read_set(options.kept, "dev"), read_set(options.kept, "train")

    plain = candidates_of(options.kept, "dev", captioner, replace(search, width=3))
    texts = [decode(each[0].words) for each in plain]
    before_ms = processor_ms(options.kept, captioner, replace(search, width=3))
    print(f"3 beams: {before_ms:.1f} ms of processor time a photo")
    before = line("without neighbours", texts, dev, {}, metrics)
    if options.mirror:
        averaged = candidates_of(options.kept, "dev", captioner, search, mirror=True)
        texts = [decode(each[0].words) for each in averaged]
        line("picture and mirror averaged", texts, dev, before, metrics)
    half = np.arange(len(dev.keys)) % 2 == 0

    for kind in options.neighbours:
        captions = encoded(captioner.vocabulary, training)
        if kind == "own":
            beams, drawn = map(int, options.own_candidates.split(","))
            captions = own_captions(
                options.kept, captioner, captions, options.own_captions, beams, drawn
            )
        for width in options.width:
            started = time.process_time()
            neighbours = build_neighbours(training.vectors, captions, width)
            grams = build_gram_vectors(captions, options.fewest)
            neighbours = replace(neighbours, captions=grams)
            print(
                f"\nneighbours: {kind}, {width} numbers a photo, {len(to_file(neighbours)):,} "
                f"bytes; built in {time.process_time() - started:.1f} s"
            )
            for counts, nearest in product(options.candidates, options.nearest):
                own = with_counts(search, counts)
                found = candidates_of(options.kept, "dev", captioner, own, neighbours)
                search_ms = processor_ms(options.kept, captioner, own, neighbours)
                started = time.process_time()
                if options.exact:
                    agreement = exact_agreements(found, neighbours, dev.vectors, nearest, captions)
                else:
                    agreement = agreements(found, neighbours, dev.vectors, nearest, options.alike)
                ranking = (time.process_time() - started) / len(agreement)
                value = values(found, dev, decode)
                chosen = {weight: choose(found, agreement, weight) for weight in WEIGHTS}
                cider = {
                    weight: np.array([of[number] for of, number in zip(value, best, strict=True)])
                    for weight, best in chosen.items()
                }
                captions_by_weight = {
                    weight: [decode(each[n].words) for each, n in zip(found, best, strict=True)]
                    for weight, best in chosen.items()
                }
                first = max(WEIGHTS, key=lambda weight: cider[weight][half].mean())
                second = max(WEIGHTS, key=lambda weight: cider[weight][~half].mean())
                both = zip(
                    captions_by_weight[second], captions_by_weight[first], half, strict=True
                )
                name = (
                    f"{own.width} beams, {own.drawn} drawn, fusion {own.fusion:g}, "
                    f"{nearest} nearest"
                )
                print(
                    f"{name}: search {search_ms:.1f} ms, ranking "
                    f"{1000 * ranking:.1f} ms a photo; weights by halves {first:g}, {second:g}; "
                    "CIDEr-D by weight: "
                    + ", ".join(f"{weight:g} {of.mean():.4f}" for weight, of in cider.items())
                    + f"; of the best candidates {np.mean([max(of) for of in value]):.4f}"
                )
                line(
                    f"  {name}, held out",
                    [a if is_first else b for a, b, is_first in both],
                    dev,
                    before,
                    metrics,
                )
                line(
                    f"  {name}, weight {first:g}", captions_by_weight[first], dev, before, metrics
                )


if __name__ == "__main__":
    main()
