"""Which signs tell a wrong caption: its score, how unfamiliar the picture is, and how well the
caption agrees with the captions of similar training photos.

    python benchmarks/quality/features.py KEPT
    python benchmarks/quality/unsure.py KEPT [--candidates 5,0,3] [--weight 4]

Wrong are the lowest quarter by CIDEr-D against the references, over dev and coco-mini together. A
sign is judged by its AUC: how often it is stronger for a wrong caption than for a right one. Signs
are combined by logistic regression, fitted on one half of the photos and judged on the other, in
both directions. coco-mini is not like the training photos, dev is.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from candidates import candidates_of, parser, read_captioner, with_counts
from consensus import agreements, choose, encoded
from features import read_set

from raycap.captioners.trained import TrainedCaptioner
from raycap.captioners.trained.consensus import per_word
from raycap.captioners.trained.doubt import fit_doubt, signs_of
from raycap.captioners.trained.neighbours import Floats, Neighbours, build_neighbours
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


@dataclass(frozen=True)
class Chosen:
    """The captions that the search chose for some photos, and what is known of them."""

    captions: list[str]
    signs: Floats  # [N, S]
    cider: Floats  # [N] by the references


def chosen_captions(
    kept: Path,
    name: str,
    captioner: TrainedCaptioner,
    search: Beam,
    neighbours: Neighbours,
) -> Chosen:
    """Of the photos of a set. `search.consensus` is the weight of agreement."""
    photos = read_set(kept, name)
    found = candidates_of(kept, name, captioner, search, neighbours)
    familiar = neighbours.familiar(photos.vectors)
    agreement = agreements(found, neighbours, photos.vectors)
    first = choose(found, agreement, search.consensus)
    captions = [
        captioner.vocabulary.decode(each[number].words)
        for each, number in zip(found, first, strict=True)
    ]
    scores = [per_word(each)[number] for each, number in zip(found, first, strict=True)]
    own = [each[number] for each, number in zip(agreement, first, strict=True)]
    [cider] = METRICS["cider_d"]().compute(Corpus(captions, photos.references))
    signs = signs_of(np.array(scores), familiar, np.array(own))
    return Chosen(captions, signs, cider.per_picture)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--weight", type=float, default=4.0)
    arguments.add_argument("--candidates", default="5,0,3", help="beams, drawn, fusion")
    options = arguments.parse_args()
    captioner, search = read_captioner(options)
    search = replace(with_counts(search, options.candidates), consensus=options.weight)
    training = read_set(options.kept, "train")
    neighbours = build_neighbours(training.vectors, encoded(captioner.vocabulary, training))

    sets = [
        chosen_captions(options.kept, name, captioner, search, neighbours)
        for name in ("dev", "coco")
    ]
    captions = [caption for one in sets for caption in one.captions]
    references = [
        own for name in ("dev", "coco") for own in read_set(options.kept, name).references
    ]
    signs = np.concatenate([one.signs for one in sets])
    [cider] = METRICS["cider_d"]().compute(Corpus(captions, references))
    wrong = cider.per_picture <= np.quantile(cider.per_picture, 0.25)
    dev = np.arange(len(wrong)) < len(sets[0].captions)
    print(
        f"{len(wrong)} photos, {wrong.sum()} wrong captions (CIDEr-D to "
        f"{cider.per_picture[wrong].max():.3f}): {wrong[dev].mean():.0%} of dev, "
        f"{wrong[~dev].mean():.0%} of coco-mini"
    )
    half = np.arange(len(wrong)) % 2 == 0
    names = {"score": [0], "unfamiliar": [1], "agreement": [2]}
    names |= {"score and unfamiliar": [0, 1], "all three": [0, 1, 2]}
    for name, columns in names.items():
        some = np.zeros_like(signs)
        some[:, columns] = signs[:, columns]
        combined = np.empty(len(wrong))
        for fit in (half, ~half):
            combined[~fit] = fit_doubt(some[fit], wrong[fit], 0.1).chance(some[~fit])
        print(
            f"{name:22} AUC {auc(combined, wrong):.3f}, on dev alone "
            f"{auc(combined[dev], wrong[dev]):.3f}"
        )


if __name__ == "__main__":
    main()
