"""Which pictures a page shows, what each table says of them, and by what they can be sorted."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raycap.evaluation.alignment import EXTRA, FAILED, MISSING, OTHER_SPLIT, Outcome, outcome_of
from raycap.evaluation.captions import CaptionTable
from raycap.evaluation.references import References
from raycap.evaluation.scoring import Scores
from raycap.schema import FAILED_TO_DECODE, SUCCESS

Floats = npt.NDArray[np.float64]
# The per-picture scores worth sorting by; the first one that was judged decides who is best and worst.
SORTED_BY = (
    "cider_d",
    "glove_mean",
    "meteor",
    "spice",
    "bleu_4",
    "rouge_l",
    "cider",
    "meteor_nltk",
)
SURENESS = "sureness"  # the captioner's own: length-normalised log-probability
LENGTH = "length"  # in words
DISPUTE = "dispute"  # how far the tables' scores are apart


@dataclass(frozen=True)
class Said:
    """What one table says of one picture."""

    table: str
    caption: str
    status: str
    reason: str
    alternatives: Sequence[Mapping[str, Any]]
    measures: Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """One picture of the page."""

    key: str
    uri: str
    said: Sequence[Said]
    references: Sequence[str]
    values: Sequence[float | None]  # one for each of the gallery's measures

    @property
    def is_unreadable(self) -> bool:
        """Whether nobody could read it. A page that tried again might die of it, as the first reader may have."""
        statuses = {said.status for said in self.said}
        return FAILED_TO_DECODE in statuses and SUCCESS not in statuses


@dataclass(frozen=True)
class Measure:
    """A number of each picture, of one table or of all."""

    name: str
    table: str  # "" of all
    values: Floats  # [pictures], nan where a picture has none


@dataclass(frozen=True)
class Gallery:
    """Everything about the pictures of some tables that a page tells."""

    measures: Sequence[Measure]
    entries: Sequence[Entry]  # those that are shown
    pictures: int  # of which
    statuses: Mapping[str, Mapping[str, int]]  # for each table, how many rows of each
    reasons: Sequence[tuple[str, str, int, Sequence[str]]]  # table, reason, rows, the first keys


class Collection:
    """All pictures of all tables, measured; only those that are chosen become entries."""

    def __init__(
        self, tables: Sequence[CaptionTable], references: References | None, scores: Scores | None
    ) -> None:
        self._tables, self._references, self._scores = tables, references, scores
        outcomes = scores.alignment.outcomes if scores else [list(_unjudged(table)) for table in tables]
        # A row that belongs to no picture may have the key of one.
        self._by_key = [
            {
                (outcome.outcome == EXTRA, outcome.key): outcome
                for outcome in own
                if outcome.outcome != OTHER_SPLIT
            }
            for own in outcomes
        ]
        self._keys = list(dict.fromkeys(key for own in self._by_key for key in own))
        self._statuses = [table.rows["status"].to_pylist() for table in tables]
        self.measures = list(self._measures())
        self.measures[:0] = self._dispute()

    def gallery(self, most: int, seed: int) -> Gallery:
        """The page's choice of pictures, and the counts of all."""
        shown = self._chosen(most, seed)
        entries = [self._entry(place) for place in shown]
        statuses = {
            table.name: dict(
                Counter(self._status(number, outcome) for outcome in own.values()).most_common()
            )
            for number, (table, own) in enumerate(zip(self._tables, self._by_key, strict=True))
        }
        return Gallery(self.measures, entries, len(self._keys), statuses, self._reasons())

    def _measures(self) -> Iterable[Measure]:
        judged = self._scores.alignment.keys if self._scores else ()
        place = {key: number for number, key in enumerate(judged)}
        rows = [-1 if extra else place.get(key, -1) for extra, key in self._keys]
        for number, table in enumerate(self._tables):
            own = self._by_key[number]
            answers = self._scores.answers[number] if self._scores else {}
            told = [own.get(key) for key in self._keys]
            told = [
                outcome if outcome and outcome.outcome not in (FAILED, MISSING) else None for outcome in told
            ]
            there = np.array([outcome is not None for outcome in told])
            for name in (name for name in SORTED_BY if name in answers):
                values = np.append(answers[name].scores, np.nan)[rows]
                yield Measure(name, table.name, np.where(there, values, np.nan))
            sure = np.append(
                table.rows["score"].to_numpy(zero_copy_only=False).astype(np.float64), np.nan
            )
            if np.isfinite(sure).any():
                yield Measure(
                    SURENESS, table.name, sure[[outcome.row if outcome else -1 for outcome in told]]
                )
            words = [len(outcome.caption.split()) if outcome else np.nan for outcome in told]
            yield Measure(LENGTH, table.name, np.array(words, np.float64))

    def _dispute(self) -> Iterable[Measure]:
        """How far the tables' scores of a picture are apart."""
        each = np.stack([measure.values for measure in self.main])
        if len(each) > 1:
            yield Measure(DISPUTE, "", np.ptp(each, axis=0))

    @property
    def main(self) -> list[Measure]:
        """The measure that tells good captions from bad ones, for each table."""
        names = {measure.name for measure in self.measures}
        name = next((name for name in (*SORTED_BY, SURENESS) if name in names), LENGTH)
        return [measure for measure in self.measures if measure.name == name]

    def _chosen(self, most: int, seed: int) -> list[int]:
        """All pictures where there is room, else some of each kind; in their order."""
        if len(self._keys) <= most:
            return list(range(len(self._keys)))
        share = max(1, most // 5)
        each = np.stack([measure.values for measure in self.main])
        known = np.isfinite(each).all(axis=0)
        failed = [
            place
            for place, key in enumerate(self._keys)
            if any(key in own and own[key].outcome == FAILED for own in self._by_key)
        ]
        order = np.argsort(np.where(known, each.mean(axis=0), np.nan), kind="stable")[
            : int(known.sum())
        ]
        disputed = np.argsort(np.where(known, np.ptp(each, axis=0), -1), kind="stable")[::-1]
        drawn = np.random.default_rng(seed).permutation(len(self._keys))
        kinds: list[Iterable[int]] = [failed[:share], order[:share], order[::-1][:share]]
        kinds += [disputed[:share]] if len(each) > 1 else []
        chosen = dict.fromkeys(int(place) for place in itertools.chain(*kinds, drawn))
        return sorted(list(chosen)[:most])

    def _entry(self, place: int) -> Entry:
        extra, key = self._keys[place]
        said = [
            self._said(number, own[extra, key], place)
            for number, own in enumerate(self._by_key)
            if (extra, key) in own
        ]
        rows = [
            (table, own.get((extra, key)))
            for table, own in zip(self._tables, self._by_key, strict=True)
        ]
        uris = [
            table.rows["uri"][outcome.row].as_py() for table, outcome in rows if outcome and outcome.row >= 0
        ]
        known = self._references
        references = known.captions.get(key, []) if known and not extra else []
        uri = next(filter(None, uris), known.uris.get(key, "") if known and not extra else "")
        values = [float(measure.values[place]) for measure in self.measures]
        return Entry(
            key, uri, said, references, [value if np.isfinite(value) else None for value in values]
        )

    def _said(self, number: int, outcome: Outcome, place: int) -> Said:
        table = self._tables[number]
        row = table.rows.slice(outcome.row, 1).to_pylist()[0] if outcome.row >= 0 else {}
        chips = {SURENESS, *(measure.name for measure in self.main)} - {LENGTH}
        own = {
            measure.name: float(measure.values[place])
            for measure in self.measures
            if measure.table == table.name
        }
        told = {name: value for name, value in own.items() if name in chips and np.isfinite(value)}
        reason = row.get("error_message", outcome.reason)
        return Said(
            table.name,
            outcome.caption,
            self._status(number, outcome),
            reason,
            row.get("alternatives") or [],
            told,
        )

    def _status(self, number: int, outcome: Outcome) -> str:
        return MISSING if outcome.row < 0 else str(self._statuses[number][outcome.row])

    def _reasons(self) -> list[tuple[str, str, int, Sequence[str]]]:
        """Why pictures failed, the commonest first."""
        found: dict[tuple[str, str], list[str]] = {}
        for table, own in zip(self._tables, self._by_key, strict=True):
            for outcome in own.values():
                if outcome.outcome in (FAILED, MISSING):
                    found.setdefault((table.name, outcome.reason), []).append(outcome.key)
        common = sorted(found.items(), key=lambda item: -len(item[1]))
        return [(table, reason, len(keys), keys[:5]) for (table, reason), keys in common]


def _unjudged(table: CaptionTable) -> Iterable[Outcome]:
    columns = [
        table.rows[name].to_pylist() for name in ("key", "caption", "status", "error_message")
    ]
    for row, (key, caption, status, reason) in enumerate(zip(*columns, strict=True)):
        yield outcome_of(key, caption, status, reason, row)
