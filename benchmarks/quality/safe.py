"""What a captioner may answer where it is not sure of its caption.

    python benchmarks/quality/features.py KEPT
    python benchmarks/quality/safe.py KEPT [--candidates 5,0,3] [--weight 4] [--show 8]

Of dev and coco-mini, the captions with the flag not_sure are compared with other answers about the
same pictures: shorter captions, the beginning of its caption, and a human caption of a similar
training photo. None of them is better, so there is no option for it. `right words` is the share of
the words of an answer (without a, the, is, ...) that are in a caption of the picture. Doubt is
fitted to dev, as in the captioner that ships.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from candidates import candidates_of, parser, read_captioner, with_counts
from consensus import agreements, choose, encoded
from features import PhotoSet, read_set

from raycap.captioners.trained import TrainedCaptioner
from raycap.captioners.trained.consensus import find_candidates, per_word
from raycap.captioners.trained.doubt import fit_doubt, signs_of
from raycap.captioners.trained.neighbours import Floats, Neighbours, build_neighbours
from raycap.decoders.decoder import Tensors
from raycap.decoders.teacher_forcing import decoder_inputs, pad_captions
from raycap.metrics import METRICS, Corpus, tokenise
from raycap.search import Beam, Hypothesis
from raycap.vocabulary import END, START

NOT_SURE_OF = 0.1
MOST_UNFAMILIAR = 0.95
# Words that say nothing about a picture.
SMALL_WORDS = """
a an the is are be being with and or of in on at to by from for into onto up down out off over
through as his her their its it he she they while that this there some
"""
SMALL = frozenset(SMALL_WORDS.split())


@dataclass(frozen=True)
class Unsure:
    """The pictures of a set that the captioner is not sure of."""

    photos: PhotoSet
    rows: list[int]
    captions: list[str]  # its own
    words: list[tuple[int, ...]]  # of these
    candidates: list[list[Hypothesis]]
    agreement: list[Floats]
    near: np.ndarray  # [N, K]
    likeness: Floats  # [N, K]


def right_words(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of words that are in a reference of the same picture."""
    right = total = 0
    for caption, own in zip(tokenise(captions), references, strict=True):
        known = {word for one in tokenise(own) for word in one.split()}
        words = [word for word in caption.split() if word not in SMALL]
        right += sum(word in known for word in words)
        total += len(words)
    return right / max(total, 1)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--weight", type=float, default=4.0)
    arguments.add_argument("--candidates", default="5,0,3", help="beams, drawn, fusion")
    arguments.add_argument("--show", type=int, default=0, help="answers of each set")
    options = arguments.parse_args()
    captioner, search = read_captioner(options)
    search = replace(with_counts(search, options.candidates), consensus=options.weight)
    training = read_set(options.kept, "train")
    captions = encoded(captioner.vocabulary, training)
    neighbours = build_neighbours(training.vectors, captions)
    neighbours = neighbours.calibrated(read_set(options.kept, "dev").vectors)
    doubt = None
    for name in ("dev", "coco"):
        photos = read_set(options.kept, name)
        found = candidates_of(options.kept, name, captioner, search, neighbours)
        agreement = agreements(found, neighbours, photos.vectors)
        first = choose(found, agreement, search.consensus)
        familiar = neighbours.familiar(photos.vectors)
        scores = [per_word(each)[number] for each, number in zip(found, first, strict=True)]
        own = [each[number] for each, number in zip(agreement, first, strict=True)]
        signs = signs_of(np.array(scores), familiar, np.array(own))
        texts = [
            captioner.vocabulary.decode(each[number].words)
            for each, number in zip(found, first, strict=True)
        ]
        if doubt is None:  # dev comes first
            [cider] = METRICS["cider_d"]().compute(Corpus(texts, photos.references))
            wrong = cider.per_picture <= np.quantile(cider.per_picture, 0.25)
            doubt = fit_doubt(signs, wrong, NOT_SURE_OF)
        is_unsure = doubt.chance(signs) >= doubt.threshold
        is_unsure |= neighbours.unfamiliar(familiar) >= MOST_UNFAMILIAR
        rows = np.flatnonzero(is_unsure).tolist()
        near = neighbours.nearest(photos.vectors[rows])
        unsure = Unsure(
            photos,
            rows,
            [texts[row] for row in rows],
            [found[row][first[row]].words for row in rows],
            [found[row] for row in rows],
            [agreement[row] for row in rows],
            *near,
        )
        print(f"{name}: not sure of {len(rows)} of {len(texts)} captions")
        answers = answers_of(unsure, captioner, search, neighbours, captions)
        report(unsure, answers, texts, options.show)


def answers_of(
    unsure: Unsure,
    captioner: TrainedCaptioner,
    search: Beam,
    neighbours: Neighbours,
    captions: Sequence[Sequence[Sequence[int]]],
) -> dict[str, list[str]]:
    """By kind, an answer about each picture."""
    decode = captioner.vocabulary.decode
    answers = {"its own caption": unsure.captions}
    both = list(zip(unsure.candidates, unsure.agreement, strict=True))
    for weight in (0.0, 2.0, 8.0, 100.0):
        chosen = [
            each[int(np.argmax([one.log_probability for one in each] + weight * agreement))]
            for each, agreement in both
        ]
        name = f"of its candidates, by whole probability + {weight:g} x agreement"
        answers[name] = [decode(one.words) for one in chosen]
    assert unsure.photos.grids is not None
    grids = torch.from_numpy(unsure.photos.grids[unsure.rows].astype("float32"))
    vectors = torch.from_numpy(unsure.photos.vectors[unsure.rows])
    bonus = neighbours.word_bonus(unsure.near, unsure.likeness, len(captioner.vocabulary))
    with torch.inference_mode():
        memory = captioner.decoder.prepare(grids, vectors)
        for penalty, fusion in ((0.0, 3.0), (0.6, 3.0), (0.0, 8.0), (0.6, 8.0)):
            shorter = replace(search, length_penalty=penalty, fusion=fusion, min_length=3)
            found = find_candidates(
                shorter, captioner.decoder, memory, [0] * len(bonus), word_bonus=bonus
            )
            name = f"another search, length penalty {penalty}, fusion {fusion:g}"
            answers[name] = [decode(each[0].words) for each in found]
        ends = end_probabilities(captioner, memory, unsure.words)
    for least, chance in ((2, 1e-4), (3, 1e-4), (3, 1e-3), (3, 1e-2)):
        cut = [
            words[: shortest_beginning(own, least, chance)]
            for words, own in zip(unsure.words, ends, strict=True)
        ]
        name = f"its beginning, from {least} words, that ends there with {chance:g}"
        answers[name] = [decode(words) for words in cut]
    for most in (1, 5, 30, 100):
        answers[f"human caption of the {most} nearest"] = [
            decode(of_nearest(neighbours, rows[:most], rows, likeness, captions))
            for rows, likeness in zip(unsure.near, unsure.likeness, strict=True)
        ]
    return answers


def end_probabilities(
    captioner: TrainedCaptioner, memory: Tensors, captions: Sequence[Sequence[int]]
) -> np.ndarray:
    """The probability [N, T] that a caption would end before each of its words."""
    words = pad_captions([[[START, *own, END]] for own in captions])
    logits, _ = captioner.decoder(memory, decoder_inputs(words))
    ends: np.ndarray = logits.softmax(-1)[:, 0, :, END].numpy()
    return ends


def shortest_beginning(ends: np.ndarray, least: int, chance: float) -> int:
    """Words of the shortest beginning of a caption that may end there."""
    possible = np.flatnonzero(ends >= chance)
    return int(min(possible[possible >= least], default=len(ends)))


def of_nearest(
    neighbours: Neighbours,
    some: np.ndarray,
    rows: np.ndarray,
    likeness: Floats,
    captions: Sequence[Sequence[Sequence[int]]],
) -> Sequence[int]:
    """Of the captions of some photos, the one that agrees best with those of all similar ones."""
    given = [one for row in some for one in captions[row]]
    best: Sequence[int] = given[int(np.argmax(neighbours.agreement(given, rows, likeness)))]
    return best


def report(
    unsure: Unsure, answers: dict[str, list[str]], texts: Sequence[str], shown: int
) -> None:
    """Print the scores of each kind of answer. CIDEr-D has the word frequencies of the set."""
    references = [unsure.photos.references[row] for row in unsure.rows]
    sure = [row for row in range(len(texts)) if row not in set(unsure.rows)]
    right = right_words(
        [texts[row] for row in sure], [unsure.photos.references[row] for row in sure]
    )
    print(f"  {'captions that it is sure of':60} right words {right:.1%}")
    for name, answer in answers.items():
        whole = list(texts)
        for row, one in zip(unsure.rows, answer, strict=True):
            whole[row] = one
        [cider] = METRICS["cider_d"]().compute(Corpus(whole, unsure.photos.references))
        mean = float(np.mean(cider.per_picture[unsure.rows]))
        length = np.mean([len(one.split()) for one in answer])
        print(
            f"  {name:60} right words {right_words(answer, references):.1%}, CIDEr-D {mean:.3f} "
            f"(of all {cider.value:.4f}), {length:.1f} words"
        )
    for number in range(min(shown, len(unsure.rows))):
        print(f"  {unsure.photos.keys[unsure.rows[number]]}: {references[number][0]}")
        for name, answer in answers.items():
            print(f"    {name:60} {answer[number]}")


if __name__ == "__main__":
    main()
