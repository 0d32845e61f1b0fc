"""Compares raycap's metrics with pycocoevalcap's: seconds to score 5,000 captions, and captions
per second of the CIDEr-D reward.

    python benchmarks/metrics.py [--rounds 5] [--pictures 64] [--samples 5]

Captions and references come from the folder reference-scores in RAYCAP_DATA (default
../shared/data). Both start from text: tokenising, BLEU, ROUGE-L and CIDEr-D. They take turns; the
figures are medians. pycocoevalcap (pip install pycocoevalcap; its tokeniser needs Java) is left
out if it is not installed.
"""

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from json_figures import add_json, write_figures

from raycap.metrics import METRICS, CiderReward, Corpus, DocumentFrequencies, tokenise
from raycap.vocabulary import PAD, Vocabulary, VocabularyOptions

Captions = list[str]
References = list[list[str]]


def human() -> tuple[Captions, References]:
    """The 5,000 captions and the 20,014 they are scored against."""
    folder = Path(os.environ.get("RAYCAP_DATA", "../shared/data")) / "reference-scores"
    captions = json.loads((folder / "coco_val2017_human_cands.json").read_text(encoding="utf-8"))
    references: dict[int, list[str]] = {row["image_id"]: [] for row in captions}
    for row in json.loads((folder / "coco_val2017_human_refs.json").read_text(encoding="utf-8"))[
        "annotations"
    ]:
        references[row["image_id"]].append(row["caption"])
    return [row["caption"] for row in captions], list(references.values())


def ours(captions: Captions, references: References) -> list[float]:
    corpus = Corpus(captions, references)
    return [
        answer.value
        for name in ("bleu", "rouge_l", "cider_d")
        for answer in METRICS[name]().compute(corpus)
    ]


def theirs(captions: Captions, references: References) -> list[float]:
    def part(name: str) -> Any:
        return importlib.import_module(f"pycocoevalcap.{name}")

    tokenizer = part("tokenizer.ptbtokenizer").PTBTokenizer()
    found = tokenizer.tokenize(
        {key: [{"caption": caption}] for key, caption in enumerate(captions)}
    )
    wanted = tokenizer.tokenize(
        {key: [{"caption": each} for each in all_] for key, all_ in enumerate(references)}
    )
    bleu, _ = part("bleu.bleu").Bleu(4).compute_score(wanted, found, verbose=0)
    rouge, _ = part("rouge.rouge").Rouge().compute_score(wanted, found)
    cider, _ = part("cider.cider").Cider().compute_score(wanted, found)
    return [*bleu, rouge, cider]


def medians(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each side, which take turns; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def sampled(
    references: References, pictures: int, samples: int
) -> tuple[Callable[[], object], Any, list[str]]:
    """What rewards a batch of captions as sampling writes them, [pictures x samples, T]; their
    pictures; and their texts."""
    vocabulary = Vocabulary.build(
        (caption for every in references for caption in every), VocabularyOptions()
    )
    encoded = [[vocabulary.encode(caption) for caption in every] for every in references]
    random = np.random.default_rng(0)
    places = np.repeat(random.choice(len(references), pictures, replace=False), samples)
    batch = np.full((len(places), 20), PAD)
    for row, place in enumerate(places):
        # Right and wrong captions in turns.
        near = place if row % 2 else random.integers(len(references))
        numbers = encoded[near][random.integers(len(encoded[near]))][1:21]
        batch[row, : len(numbers)] = numbers
    reward = CiderReward(DocumentFrequencies.counted(encoded))
    of_pictures = [encoded[place] for place in places[::samples]]
    numbers_of_pictures = np.repeat(np.arange(pictures), samples)
    act = lambda: reward(batch, of_pictures, numbers_of_pictures)  # noqa: E731
    return act, places, [vocabulary.decode(row) for row in batch]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rounds", 5), ("pictures", 64), ("samples", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    add_json(parser)
    options = parser.parse_args()
    captions, references = human()
    peer = importlib.util.find_spec("pycocoevalcap") is not None

    sides: dict[str, Callable[[], object]] = {"raycap": lambda: ours(captions, references)}
    if peer:
        sides["pycocoevalcap"] = lambda: theirs(captions, references)
        apart = np.abs(np.array(ours(captions, references)) - theirs(captions, references)).max()
        print(f"largest difference of a corpus score: {apart:.1e}")
    scoring = medians(sides, options.rounds)
    for name, seconds in scoring.items():
        ratio = scoring[name] / scoring["raycap"]
        print(f"{name:>14}: {seconds:.2f} s for {len(captions)} captions, {ratio:.1f}x")

    reward, places, texts = sampled(references, options.pictures, options.samples)
    sides = {"raycap": reward}
    if peer:
        scorer = importlib.import_module("pycocoevalcap.cider.cider").Cider()
        clean = [tokenise(references[place]) for place in places]
        found = {row: [text] for row, text in enumerate(texts)}
        wanted = dict(enumerate(clean))
        sides["pycocoevalcap"] = lambda: scorer.compute_score(wanted, found)
    rewarding = medians(sides, 5 * options.rounds)
    for name, seconds in rewarding.items():
        per_second, ms = len(texts) / seconds, seconds * 1000
        print(f"{name:>14}: {per_second:.0f} rewards per second, {ms:.1f} ms per batch")
    if peer:
        write_figures(
            options,
            {
                "corpus_ratio": scoring["pycocoevalcap"] / scoring["raycap"],
                "reward_ratio": rewarding["pycocoevalcap"] / rewarding["raycap"],
            },
        )
    code = "import time; t = time.perf_counter(); import raycap.metrics; "
    code += "print(time.perf_counter() - t)"
    import_seconds = float(subprocess.check_output([sys.executable, "-c", code]))
    print(f"import raycap.metrics: {import_seconds:.2f} s")


if __name__ == "__main__":
    main()
