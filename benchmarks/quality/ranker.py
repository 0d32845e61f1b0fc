"""Whether a learned ranker chooses better candidates than log-probability and consensus alone.

    python benchmarks/quality/features.py KEPT
    python benchmarks/quality/ranker.py KEPT [--candidates 5,0,3 10,20,3] [--weight 4]

It is a ridge regression of the CIDEr-D of candidates on what is known of them, each less the mean
of the picture's candidates. It is fitted to nine tenths of dev and chooses for the last one, ten
times. The gain is over log-probability + weight x agreement, as the captioner ranks, with a 95%
paired bootstrap interval.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from candidates import candidates_of, parser, read_captioner, with_counts
from consensus import agreements, choose, encoded, line, values
from features import read_set

from raycap.captioners.trained.consensus import per_word
from raycap.captioners.trained.neighbours import Floats, build_neighbours
from raycap.metrics.consensus import CiderConsensus
from raycap.search import Hypothesis

FOLDS = 10
RIDGE = 1.0
NAMES = (
    "log-probability of a word",
    "of the caption",
    "agreement",
    "its square",
    "words",
    "their square",
    "bonus of its words",
    "agreement with the other candidates",
)


def signs_of(each: Sequence[Hypothesis], agreement: Floats, bonus: Floats) -> Floats:
    """What is known of the candidates of a picture [C, S], less their mean."""
    counts = np.array([len(one.words) for one in each], np.float64)
    among = CiderConsensus([[list(one.words) for one in each]])
    words = [float(np.mean(bonus[list(one.words)])) if one.words else 0.0 for one in each]
    signs = np.column_stack(
        [
            per_word(each),
            [one.log_probability for one in each],
            agreement,
            np.square(agreement),
            counts,
            np.square(counts),
            words,
            among([one.words for one in each], np.array([0])),
        ]
    )
    centred: Floats = signs - signs.mean(0)
    return centred


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--weight", type=float, default=4.0)
    arguments.add_argument("--candidates", nargs="*", default=["5,0,3", "10,20,3"])
    options = arguments.parse_args()
    captioner, search = read_captioner(options)
    training, dev = read_set(options.kept, "train"), read_set(options.kept, "dev")
    neighbours = build_neighbours(training.vectors, encoded(captioner.vocabulary, training))
    bonus = neighbours.word_bonus(*neighbours.nearest(dev.vectors), len(captioner.vocabulary))
    fold = np.arange(len(dev.keys)) % FOLDS
    for counts in options.candidates:
        own = replace(with_counts(search, counts), consensus=options.weight)
        found = candidates_of(options.kept, "dev", captioner, own, neighbours)
        agreement = agreements(found, neighbours, dev.vectors)
        value = values(found, dev, captioner.vocabulary.decode)
        signs = [signs_of(*one) for one in zip(found, agreement, bonus, strict=True)]
        usual = choose(found, agreement, options.weight)
        chosen = list(usual)
        for number in range(FOLDS):
            fit = [row for row in range(len(found)) if fold[row] != number]
            inputs = np.concatenate([signs[row] for row in fit])
            target = np.concatenate([value[row] - np.mean(value[row]) for row in fit])
            spread = inputs.std(0).clip(1e-9)
            scaled = inputs / spread
            square = scaled.T @ scaled + RIDGE * np.eye(scaled.shape[1])
            weights = np.linalg.solve(square, scaled.T @ target) / spread
            for row in np.flatnonzero(fold == number):
                ranks = signs[row] @ weights
                ranks[[not one.finished for one in found[row]]] -= 1e6
                chosen[row] = int(np.argmax(ranks))
        decode = captioner.vocabulary.decode
        texts = [
            [decode(each[n].words) for each, n in zip(found, numbers, strict=True)]
            for numbers in (usual, chosen)
        ]
        metrics = ["bleu", "cider_d", "health"]
        before = line(f"{counts}: as the captioner ranks", texts[0], dev, {}, metrics)
        line(f"{counts}: learned", texts[1], dev, before, metrics)
        print("  weights of the last fold: " + _weights(weights * spread))


def _weights(weights: Floats) -> str:
    return ", ".join(f"{name} {weight:+.3f}" for name, weight in zip(NAMES, weights, strict=True))


if __name__ == "__main__":
    main()
