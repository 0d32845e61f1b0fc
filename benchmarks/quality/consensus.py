"""What reranking by consensus gains on dev, and what it costs.

    python benchmarks/quality/features.py KEPT
    python benchmarks/quality/consensus.py KEPT [--captioner shipped] [--candidates 10,20 5,8 5,0]
        [--neighbours texts own] [--width 128] [--mirror] [--meteor]

For each set of candidates (beams, drawn captions) the weight of consensus is chosen by CIDEr-D on
one half of dev, and the other half is scored with it, in both directions: `held out`. `all` has
one weight for all of dev. Gains are over the captioner's own search without consensus, with a 95%
paired bootstrap interval.

Neighbours: `texts` remembers the human captions of the training photos. `own` remembers captions
that the captioner wrote for them, as what ships does (ship.py).
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from candidates import candidates_of, processor_ms
from features import PhotoSet, read_set
from own_captions import own_captions

from raycap.captioners.trained import TrainedCaptioner
from raycap.captioners.trained.consensus import per_word
from raycap.captioners.trained.neighbours import Floats, Neighbours, build_neighbours
from raycap.metrics import METRICS, Corpus, Score, compare, tokenise
from raycap.metrics.consensus import CiderConsensus
from raycap.metrics.corpus import to_numbers
from raycap.search import Beam, Hypothesis
from raycap.vocabulary import Vocabulary

WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0)
Each = Sequence[Sequence[Hypothesis]]


def encoded(vocabulary: Vocabulary, photos: PhotoSet) -> list[list[list[int]]]:
    """The human captions as token numbers, without `<start>` and `<end>`."""
    return [[vocabulary.encode(text)[1:-1] for text in texts] for texts in photos.references]


def agreements(candidates: Each, neighbours: Neighbours, vectors: Floats) -> list[Floats]:
    """Of each photo's candidates with its neighbours."""
    nearest, _ = neighbours.nearest(vectors)
    return [
        neighbours.consensus([one.words for one in each], rows)
        for each, rows in zip(candidates, nearest, strict=True)
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kept", type=Path)
    parser.add_argument("--captioner", default="shipped")
    parser.add_argument("--encoder-weights", default="")
    parser.add_argument("--candidates", nargs="*", default=["10,20", "5,8", "5,0", "3,0"])
    parser.add_argument("--neighbours", nargs="*", default=["texts"], choices=("texts", "own"))
    parser.add_argument("--width", nargs="*", type=int, default=[128])
    parser.add_argument("--own-captions", type=int, default=5, help="of each training photo")
    parser.add_argument("--own-candidates", default="10,20", help="beams, drawn")
    parser.add_argument("--mirror", action="store_true", help="also the mean of both features")
    parser.add_argument("--meteor", action="store_true", help="takes Java")
    options = parser.parse_args()
    captioner = TrainedCaptioner.read(
        options.captioner, "cpu", "fp32", encoder_weights=options.encoder_weights
    )
    search = captioner.plan.search
    assert isinstance(search, Beam)
    search = replace(search, consensus=0.0, drawn=0)
    decode = captioner.vocabulary.decode
    metrics = ["bleu", "cider_d", "health", *(["meteor"] if options.meteor else [])]
    dev, training = read_set(options.kept, "dev"), read_set(options.kept, "train")

    plain = candidates_of(options.kept, "dev", captioner, search)
    texts = [decode(each[0].words) for each in plain]
    before_ms = processor_ms(options.kept, captioner, search)
    print(f"the captioner's own search: {before_ms:.1f} ms of processor time a photo")
    before = line("without consensus", texts, dev, {}, metrics)
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
            built = time.process_time()
            neighbours.consensus, neighbours.nearest(dev.vectors[:1])
            print(
                f"\nneighbours: {kind}, {width} numbers a photo; built in "
                f"{built - started:.1f} s, counted in {time.process_time() - built:.2f} s"
            )
            for counts in options.candidates:
                beams, drawn = map(int, counts.split(","))
                own_search = replace(search, width=beams, drawn=drawn)
                found = candidates_of(options.kept, "dev", captioner, own_search)
                search_ms = processor_ms(options.kept, captioner, own_search)
                started = time.process_time()
                agreement = agreements(found, neighbours, dev.vectors)
                ranking = (time.process_time() - started) / len(agreement)
                value = values(found, dev, decode)
                chosen = {weight: choose(found, agreement, weight) for weight in WEIGHTS}
                cider = {
                    weight: np.array([of[number] for of, number in zip(value, own, strict=True)])
                    for weight, own in chosen.items()
                }
                captions_by_weight = {
                    weight: [decode(each[n].words) for each, n in zip(found, own, strict=True)]
                    for weight, own in chosen.items()
                }
                first = max(WEIGHTS, key=lambda weight: cider[weight][half].mean())
                second = max(WEIGHTS, key=lambda weight: cider[weight][~half].mean())
                both = zip(
                    captions_by_weight[second], captions_by_weight[first], half, strict=True
                )
                name = f"{beams} beams, {drawn} drawn"
                print(
                    f"{name}: search {search_ms:.1f} ms, ranking "
                    f"{1000 * ranking:.1f} ms a photo; weights by halves {first:g}, {second:g}; "
                    "CIDEr-D by weight: "
                    + ", ".join(f"{weight:g} {of.mean():.4f}" for weight, of in cider.items())
                    + f"; of the best candidates {np.mean([max(of) for of in value]):.4f}"
                )
                line(
                    f"  {name}, held out",
                    [a if own else b for a, b, own in both],
                    dev,
                    before,
                    metrics,
                )
                line(
                    f"  {name}, weight {first:g}", captions_by_weight[first], dev, before, metrics
                )


if __name__ == "__main__":
    main()
