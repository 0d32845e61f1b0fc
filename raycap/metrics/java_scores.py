"""METEOR and SPICE as the COCO caption evaluation computes them: Java, from pycocoevalcap."""

import contextlib
import importlib.util
import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from raycap.errors import UserError
from raycap.metrics.corpus import Corpus
from raycap.metrics.scores import Floats, Score, ScoreFacts, mean_score

_STATISTICS = 23  # numbers that METEOR 1.5 prints for each caption
# Its parameters for English: the balance of recall and precision, the cost of fragments, the
# weight of content words, and the weights of exact, stem, synonym and paraphrase matches.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGES = np.array([1.0, 0.6, 0.8, 0.6])
_METEOR = ["java", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]


@dataclass(frozen=True)
class Meteor:
    """METEOR 1.5 of the COCO evaluation (Java): matches of words, stems, synonyms, paraphrases."""

    scores: ClassVar[tuple[ScoreFacts, ...]] = (
        ScoreFacts(
            "meteor",
            "METEOR",
            "words, stems, synonyms and paraphrases that a reference has too, from 0 to 1",
            format="{:.3f}",
            picture_rank=3,
        ),
    )

    def compute(self, corpus: Corpus) -> tuple[Score, ...]:
        """From counts over the whole corpus; not a mean over pictures."""
        folder = _folder_of_pycocoevalcap("meteor") / "meteor"
        lines = []
        for ours, theirs in zip(corpus.tokens, corpus.reference_tokens, strict=True):
            # The program separates captions by "|||" and takes one line for each picture.
            captions = [" ".join(text.replace("|||", "").split()) for text in (*theirs, ours)]
            lines.append(" ||| ".join(["SCORE", *captions]) + "\n")
        ended = subprocess.run(
            _METEOR,
            cwd=folder,
            input="".join(lines),
            capture_output=True,
            encoding="utf-8",
        )
        counts = [line.split() for line in ended.stdout.splitlines()]
        if len(counts) != len(lines) or any(len(row) != _STATISTICS for row in counts):
            raise UserError(
                "meteor: the Java program did not answer as METEOR 1.5 does: "
                f"{ended.stderr.strip()[-300:]}"
            )
        parts = np.array(counts, np.float64)  # [pictures, 23]
        # The program counts no chunk where caption and reference match whole and in order.
        matched_whole = (parts[:, 0:2] == parts[:, 21:23]).all(axis=1) & (parts[:, 20] == 1)
        parts[matched_whole, 20] = 0
        signature = corpus.signature(version="1.5", language="en")
        return (Score(self.scores[0], parts, _meteor, signature),)


def _meteor(sums: Floats) -> Floats:
    """The score from sums of statistics [..., 23]; Denkowski and Lavie, "Meteor Universal" (2014),
    section 2."""
    # Each pair is of the caption and of the reference.
    lengths, function_words, matched = sums[..., 0:2], sums[..., 2:4], sums[..., 21:23]
    # [..., stage, content or function word, pair]
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)
    weighted = np.einsum("...swo,s->...wo", stages, _STAGES)
    found = _DELTA * weighted[..., 0, :] + (1 - _DELTA) * weighted[..., 1, :]
    written = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(found / written, -1, 0)
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragments = sums[..., 20] / matched.mean(axis=-1)
        score = mean * (1 - _GAMMA * fragments**_BETA)
    return np.asarray(np.nan_to_num(score, nan=0.0))


@dataclass(frozen=True)
class Spice:
    """SPICE of the COCO evaluation (Java): objects, properties and relations that caption and
    references share. Slow, and needs 8 GB of memory."""

    scores: ClassVar[tuple[ScoreFacts, ...]] = (
        ScoreFacts(
            "spice",
            "SPICE",
            "objects, properties and relations that the references have too, from 0 to 1",
            format="{:.3f}",
            picture_rank=4,
        ),
    )

    def compute(self, corpus: Corpus) -> tuple[Score, ...]:
        """The mean over pictures."""
        library = _folder_of_pycocoevalcap("spice") / "spice" / "lib"
        if not (library / "stanford-corenlp-3.6.0-models.jar").exists():
            raise UserError(
                "spice needs Stanford CoreNLP 3.6.0, 400 MB that pycocoevalcap fetches once:\n"
                "  python -m pycocoevalcap.spice.get_stanford_models\n"
                f"or put its two jar files into {library}"
            )
        from pycocoevalcap.spice.spice import Spice as Reference

        ours = {row: [tokens] for row, tokens in enumerate(corpus.tokens)}
        theirs = dict(enumerate(corpus.reference_tokens))
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                _, found = Reference().compute_score(theirs, ours)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise UserError(
                f"spice: the Java program failed ({error}); it was made for Java 8"
            ) from error
        per_picture = np.nan_to_num(np.array([each["All"]["f"] for each in found], np.float64))
        return (mean_score(self.scores[0], per_picture, corpus.signature(version="1.0")),)


def _folder_of_pycocoevalcap(name: str) -> Path:
    """The folder of the package pycocoevalcap. Raises UserError if it or Java is not installed."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{name} needs pycocoevalcap: pip install 'raycap[coco-metrics]'")
    if not shutil.which("java"):
        raise UserError(
            f"{name} is a Java program: install a Java runtime (such as openjdk-17-jre-headless)"
        )
    return Path(found.submodule_search_locations[0])
