"""Which signs tell a wrong caption: its score, how unfamiliar the picture is, and how well the
caption agrees with the captions of similar training photos.

    python benchmarks/quality/features.py KEPT
    python benchmarks/quality/unsure.py KEPT [--weight 4] [--captioner shipped]

Wrong are the lowest quarter by CIDEr-D against the references, over dev and coco-mini together. A
sign is judged by its AUC: how often it is stronger for a wrong caption than for a right one. Signs
are combined by logistic regression, fitted on one half of the photos and judged on the other, in
both directions. coco-mini is not like the training photos, dev is.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from candidates import candidates_of
from consensus import agreements, encoded
from features import read_set

from raycap.captioners.trained import TrainedCaptioner
from raycap.captioners.trained.consensus import per_word
from raycap.captioners.trained.neighbours import FAMILIAR, Floats, build_neighbours
from raycap.metrics import METRICS, Corpus
from raycap.search import Beam


def auc(sign: Floats, wrong: np.ndarray) -> float:
    """The chance that a wrong one has a stronger sign than a right one."""
    order = np.argsort(sign, kind="stable")
    ranks = np.empty(len(sign))
    ranks[order] = np.arange(1, len(sign) + 1)
    positive = int(wrong.sum())
    least = positive * (positive + 1) / 2
    return float((ranks[wrong].sum() - least) / (positive * (len(sign) - positive)))


def fitted(signs: Floats, wrong: np.ndarray, steps: int = 50) -> Floats:
    """Weights of a logistic regression [S + 1], by Newton's method."""
    inputs = np.column_stack([signs, np.ones(len(signs))])
    weights = np.zeros(inputs.shape[1])
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (chance - wrong) + 1e-3 * weights
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs
        weights -= np.linalg.solve(curve + 1e-3 * np.eye(len(weights)), slope)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kept", type=Path)
    parser.add_argument("--captioner", default="shipped")
    parser.add_argument("--encoder-weights", default="")
    parser.add_argument("--weight", type=float, default=4.0)
    parser.add_argument("--candidates", default="10,20", help="beams, drawn")
    options = parser.parse_args()
    captioner = TrainedCaptioner.read(
        options.captioner, "cpu", "fp32", encoder_weights=options.encoder_weights
    )
    search = captioner.plan.search
    assert isinstance(search, Beam)
    beams, drawn = map(int, options.candidates.split(","))
    search = replace(search, width=beams, drawn=drawn)
    training = read_set(options.kept, "train")
    neighbours = build_neighbours(training.vectors, encoded(captioner.vocabulary, training))

    signs, captions, references, in_domain = [], [], [], []
    for name in ("dev", "coco"):
        photos = read_set(options.kept, name)
        found = candidates_of(options.kept, name, captioner, search)
        agreement = agreements(found, neighbours, photos.vectors)
        likeness = neighbours.nearest(photos.vectors)[1][:, :FAMILIAR].mean(1)
        for each, own, like in zip(found, agreement, likeness, strict=True):
            scores = per_word(each)
            chosen = int(np.argmax(scores + options.weight * own))
            signs.append((-scores[chosen], -like, -own[chosen]))
            captions.append(captioner.vocabulary.decode(each[chosen].words))
        references += photos.references
        in_domain += [name == "dev"] * len(found)
    [cider] = METRICS["cider_d"]().compute(Corpus(captions, references))
    wrong = cider.per_picture <= np.quantile(cider.per_picture, 0.25)
    measured = np.array(signs)
    measured = (measured - measured.mean(0)) / measured.std(0)
    dev = np.array(in_domain)
    print(
        f"{len(wrong)} photos, {wrong.sum()} wrong captions (CIDEr-D to "
        f"{cider.per_picture[wrong].max():.3f}): {wrong[dev].mean():.0%} of dev, "
        f"{wrong[~dev].mean():.0%} of coco-mini"
    )
    half = np.arange(len(wrong)) % 2 == 0
    names = {"score": [0], "unfamiliar": [1], "agreement": [2]}
    names |= {"score and unfamiliar": [0, 1], "all three": [0, 1, 2]}
    for name, columns in names.items():
        chosen_signs = measured[:, columns]
        combined = np.empty(len(wrong))
        for fit in (half, ~half):
            weights = fitted(chosen_signs[fit], wrong[fit])
            combined[~fit] = chosen_signs[~fit] @ weights[:-1] + weights[-1]
        print(
            f"{name:22} AUC {auc(combined, wrong):.3f}, on dev alone "
            f"{auc(combined[dev], wrong[dev]):.3f}"
        )


if __name__ == "__main__":
    main()
