"""METEOR and SPICE as the COCO caption evaluation computes them: Java programs that come with pycocoevalcap."""

import contextlib
import importlib.util
import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raycap.errors import UserError
from raycap.metrics.answers import Answer, Floats, mean_answer
from raycap.metrics.corpus import Corpus

_STATISTICS = 23  # that METEOR 1.5 keeps of one caption
# Its parameters for English: how recall and precision share, what fragments cost, what a content word counts.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGES = np.array(
    [1.0, 0.6, 0.8, 0.6]
)  # the worth of exact, stem, synonym and paraphrase matches


@dataclass(frozen=True)
class Meteor:
    """METEOR 1.5, the Java program of the COCO evaluation: matches of words, stems, synonyms and paraphrases."""

    def judge(self, corpus: Corpus) -> tuple[Answer, ...]:
        """Of the whole corpus' counts, not a mean over pictures."""
        folder = _java_part("meteor") / "meteor"
        pairs = zip(corpus.tokens, corpus.reference_tokens, strict=True)
        lines = [
            " ||| ".join(["SCORE", *map(_plain, theirs), _plain(ours)]) for ours, theirs in pairs
        ]
        command = [
            "java",
            "-jar",
            "-Xmx2G",
            "meteor-1.5.jar",
            "-",
            "-",
            "-stdio",
            "-l",
            "en",
            "-norm",
        ]
        written = "".join(line + "\n" for line in lines)
        ended = subprocess.run(
            command, cwd=folder, input=written, capture_output=True, encoding="utf-8"
        )
        counted = [line.split() for line in ended.stdout.splitlines()]
        if len(counted) != len(lines) or any(len(numbers) != _STATISTICS for numbers in counted):
            raise UserError(
                f"meteor: the Java program did not answer as METEOR 1.5 does: {ended.stderr.strip()[-300:]}"
            )
        parts = np.array(counted, np.float64)  # [pictures, 23]
        # The program counts no chunk where caption and reference are matched whole and in order.
        parts[(parts[:, 0:2] == parts[:, 21:23]).all(axis=1) & (parts[:, 20] == 1), 20] = 0
        return (Answer("meteor", parts, _meteor, corpus.signature(version="1.5", language="en")),)


def _plain(tokens: str) -> str:
    """What the program reads as one caption."""
    return " ".join(tokens.replace("|||", "").split())


def _meteor(sums: Floats) -> Floats:
    """The score from sums of statistics [..., 23]: Denkowski and Lavie, "Meteor Universal" (2014), section 2."""
    # Each pair is of the caption and of the reference.
    lengths, function_words, matched = sums[..., 0:2], sums[..., 2:4], sums[..., 21:23]
    stages = sums[..., 4:20].reshape(
        *sums.shape[:-1], 4, 2, 2
    )  # [..., stage, content or function word, pair]
    worth = np.einsum("...swo,s->...wo", stages, _STAGES)
    found = _DELTA * worth[..., 0, :] + (1 - _DELTA) * worth[..., 1, :]
    written = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(found / written, -1, 0)
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragments = sums[..., 20] / matched.mean(axis=-1)
        score = mean * (1 - _GAMMA * fragments**_BETA)
    return np.asarray(np.nan_to_num(score, nan=0.0))


@dataclass(frozen=True)
class Spice:
    """SPICE, the Java program of the COCO evaluation: things, properties and relations that caption and references
    share. Slow, and it wants 8 GB of memory."""

    def judge(self, corpus: Corpus) -> tuple[Answer, ...]:
        """The mean over pictures."""
        library = _java_part("spice") / "spice" / "lib"
        if not (library / "stanford-corenlp-3.6.0-models.jar").exists():
            raise UserError(
                "spice needs Stanford CoreNLP 3.6.0, some 400 MB that pycocoevalcap fetches once:\n"
                f"  python -m pycocoevalcap.spice.get_stanford_models\nor put its two jar files into {library}"
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
        scores = np.nan_to_num(np.array([each["All"]["f"] for each in found], np.float64))
        return (mean_answer("spice", scores, corpus.signature(version="1.0")),)


def _java_part(name: str) -> Path:
    """Where pycocoevalcap lies; a refusal where it or Java is not there."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{name} needs pycocoevalcap: pip install 'raycap[coco-metrics]'")
    if not shutil.which("java"):
        raise UserError(
            f"{name} is a Java program: install a Java runtime (such as openjdk-17-jre-headless)"
        )
    return Path(found.submodule_search_locations[0])
