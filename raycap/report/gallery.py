"""Selects the pictures of a page, and collects their captions, statuses and scores."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raycap.evaluation.alignment import (
    EXTRA,
    FAILED,
    MISSING,
    NOT_CHOSEN,
    OTHER_SPLIT,
    Outcome,
    unmatched_outcomes,
)
from raycap.evaluation.captions import CaptionTable
from raycap.evaluation.references import References
from raycap.evaluation.scoring import Evaluation
from raycap.metrics import ScoreFacts
from raycap.schema import FAILED_TO_DECODE, SUCCESS

LEFT_OUT = (NOT_CHOSEN, OTHER_SPLIT)  # of a page

Floats = npt.NDArray[np.float64]

CONFIDENCE = ScoreFacts(
    "confidence",
    "confidence",
    "how probable the captioner found the words of its caption, on average; 100% is certain",
    format="{:.0f}%",
)
LENGTH = ScoreFacts("length", "length in words", "words of the caption", "neither", "{:.0f}")
DIFFERENCE = ScoreFacts(
    "difference", "difference between tables", "how far apart the scores are", "neither"
)


def confidence(score: Any) -> Floats:
    """Confidence in percent, from mean log-probabilities of words; NaN where there is none."""
    scores = np.asarray(score, np.float64)
    known = np.where(np.isfinite(scores), np.minimum(scores, 0), np.nan)
    return np.asarray(100 * np.exp(known))


@dataclass(frozen=True)
class PictureCaption:
    """The caption of one picture in one table."""

    table: str
    caption: str
    status: str
    reason: str
    alternatives: Sequence[Mapping[str, Any]]
    scores: Sequence[tuple[ScoreFacts, float]]
    flags: Sequence[str] = ()  # what may be wrong with it, without spaces


@dataclass(frozen=True)
class GalleryEntry:
    """One picture of the page."""

    key: str
    uri: str
    captions: Sequence[PictureCaption]
    references: Sequence[str]
    values: Sequence[float | None]  # one for each of the gallery's measures

    @property
    def is_unreadable(self) -> bool:
        """Whether no table could decode it. Decoding it here might crash this process too."""
        statuses = {caption.status for caption in self.captions}
        return FAILED_TO_DECODE in statuses and SUCCESS not in statuses


@dataclass(frozen=True)
class PictureMeasure:
    """One number for each picture, for one table or for all tables together."""

    facts: ScoreFacts
    table: str  # "" of all
    values: Floats  # [pictures], NaN where a picture has none


@dataclass(frozen=True)
class Failure:
    """Rows of one table that failed for the same reason."""

    table: str
    reason: str
    rows: int
    keys: Sequence[str]  # the first ones


@dataclass(frozen=True)
class Gallery:
    """The content of a gallery page."""

    measures: Sequence[PictureMeasure]
    entries: Sequence[GalleryEntry]  # those that are shown
    pictures: int  # of which
    statuses: Mapping[str, Mapping[str, int]]  # for each table, rows by status
    failures: Sequence[Failure]


class GalleryMaker:
    """Computes the measures of all pictures, and makes entries of the selected ones."""

    def __init__(
        self,
        tables: Sequence[CaptionTable],
        references: References | None,
        evaluation: Evaluation | None,
    ) -> None:
        self._tables, self._references, self._evaluation = tables, references, evaluation
        if evaluation:
            outcomes = evaluation.alignment.outcomes
        else:
            outcomes = tuple(tuple(unmatched_outcomes(table)) for table in tables)
        # For each table, its outcomes. A row without a picture may have the same key as a picture.
        self._by_key = [
            {(one.outcome == EXTRA, one.key): one for one in own if one.outcome not in LEFT_OUT}
            for own in outcomes
        ]
        self._keys = list(dict.fromkeys(key for own in self._by_key for key in own))
        self._statuses = [table.rows["status"].to_pylist() for table in tables]
        measures = [one for number in range(len(tables)) for one in self._measure(number)]
        # The main measure, which decides which captions are best and worst.
        ranked = [one.facts for one in measures if one.facts.picture_rank]
        known = [one.facts for one in measures]
        if ranked:
            main = min(ranked, key=lambda facts: facts.picture_rank)
        else:
            main = CONFIDENCE if CONFIDENCE in known else LENGTH
        self._main = [one for one in measures if one.facts == main]
        self._main_values = np.stack([one.values for one in self._main])  # [tables, pictures]
        if len(self._main) > 1:
            difference = np.ptp(self._main_values, axis=0)
            measures.insert(0, PictureMeasure(DIFFERENCE, "", difference))
        self.measures = measures

    def gallery(self, most: int) -> Gallery:
        """Up to `most` pictures, and the counts of all."""
        statuses = {}
        failed: dict[tuple[str, str], list[str]] = {}
        for number, (table, own) in enumerate(zip(self._tables, self._by_key, strict=True)):
            counts = Counter(self._status(number, outcome) for outcome in own.values())
            statuses[table.name] = dict(counts.most_common())
            for outcome in own.values():
                if outcome.outcome in (FAILED, MISSING):
                    failed.setdefault((table.name, outcome.reason), []).append(outcome.key)
        failures = [
            Failure(table, reason, len(keys), keys[:5]) for (table, reason), keys in failed.items()
        ]
        failures.sort(key=lambda failure: -failure.rows)
        entries = [self._entry(place) for place in self._choose(most)]
        return Gallery(self.measures, entries, len(self._keys), statuses, failures)

    def _measure(self, number: int) -> Iterator[PictureMeasure]:
        """The measures of one table."""
        table, own = self._tables[number], self._by_key[number]
        captioned: list[Outcome | None] = []
        for key in self._keys:
            outcome = own.get(key)
            is_captioned = outcome and outcome.outcome not in (FAILED, MISSING)
            captioned.append(outcome if is_captioned else None)
        if self._evaluation:
            row_of = {key: row for row, key in enumerate(self._evaluation.alignment.keys)}
            rows = [-1 if extra else row_of.get(key, -1) for extra, key in self._keys]
            is_there = np.array([outcome is not None for outcome in captioned])
            scores = self._evaluation.scores[number].values()
            ranked = [score for score in scores if score.facts.picture_rank]
            for score in sorted(ranked, key=lambda score: score.facts.picture_rank):
                values = np.append(score.per_picture, np.nan)[rows]
                values = np.where(is_there, values, np.nan)
                yield PictureMeasure(score.facts, table.name, values)
        log_probabilities = table.rows["score"].to_numpy(zero_copy_only=False).astype(np.float64)
        confidences = np.append(confidence(log_probabilities), np.nan)
        if np.isfinite(confidences).any():
            rows = [outcome.row if outcome else -1 for outcome in captioned]
            yield PictureMeasure(CONFIDENCE, table.name, confidences[rows])
        words = [len(outcome.caption.split()) if outcome else np.nan for outcome in captioned]
        yield PictureMeasure(LENGTH, table.name, np.array(words, np.float64))

    def _choose(self, most: int) -> list[int]:
        """All pictures if there is room; otherwise failed ones, the best, the worst, those that
        differ most between tables, and random ones. In their order."""
        if len(self._keys) <= most:
            return list(range(len(self._keys)))
        share = max(1, most // 5)
        values = self._main_values
        failed = [
            place
            for place, key in enumerate(self._keys)
            if any(key in own and own[key].outcome == FAILED for own in self._by_key)
        ]
        known = np.isfinite(values).all(axis=0)
        mean = np.where(known, values.mean(axis=0), np.nan)
        order = np.argsort(mean, kind="stable")[: int(known.sum())]
        kinds: list[Iterable[int]] = [failed[:share], order[:share], order[::-1][:share]]
        if len(values) > 1:
            difference = np.where(known, np.ptp(values, axis=0), -1)
            kinds.append(np.argsort(difference, kind="stable")[::-1][:share])
        kinds.append(np.random.default_rng(0).permutation(len(self._keys)))
        chosen = dict.fromkeys(int(place) for place in itertools.chain(*kinds))
        return sorted(list(chosen)[:most])

    def _entry(self, place: int) -> GalleryEntry:
        extra, key = self._keys[place]
        captions = []
        uri = ""
        for number, own in enumerate(self._by_key):
            outcome = own.get((extra, key))
            if outcome is None:
                continue
            captions.append(self._caption(number, outcome, place))
            if outcome.row >= 0 and not uri:
                uri = self._tables[number].rows["uri"][outcome.row].as_py()
        references: Sequence[str] = ()
        if self._references and not extra:
            references = self._references.captions.get(key, ())
            uri = uri or self._references.uris.get(key, "")
        values = [float(measure.values[place]) for measure in self.measures]
        known = [value if np.isfinite(value) else None for value in values]
        return GalleryEntry(key, uri, captions, references, known)

    def _caption(self, number: int, outcome: Outcome, place: int) -> PictureCaption:
        table = self._tables[number]
        row = table.rows.slice(outcome.row, 1).to_pylist()[0] if outcome.row >= 0 else {}
        shown = {measure.facts for measure in self._main} | {CONFIDENCE}
        scores = [
            (measure.facts, float(measure.values[place]))
            for measure in self.measures
            if measure.table == table.name
            and measure.facts in shown - {LENGTH}
            and np.isfinite(measure.values[place])
        ]
        return PictureCaption(
            table.name,
            outcome.caption,
            self._status(number, outcome),
            row.get("error_message", outcome.reason),
            row.get("alternatives") or [],
            scores,
            ["_".join(flag.split()) for flag in row.get("flags") or () if flag.strip()],
        )

    def _status(self, number: int, outcome: Outcome) -> str:
        return MISSING if outcome.row < 0 else str(self._statuses[number][outcome.row])
