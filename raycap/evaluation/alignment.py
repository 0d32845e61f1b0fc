"""Matches rows of caption tables with pictures of the references. Rows and pictures without a
match are counted and named."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raycap.errors import UserError
from raycap.evaluation.captions import CaptionTable
from raycap.evaluation.options import Evaluate, Match
from raycap.evaluation.references import References
from raycap.schema import SUCCESS

# The outcome of a row or a picture in an evaluation.
JUDGED = "judged"
FAILED = "failed"  # the row says that the picture was not captioned
MISSING = "missing"  # a picture with references that the table has no row for
EXTRA = "extra"  # a row whose picture the references do not have
WITHOUT_REFERENCES = "without_references"  # a row whose picture has no human caption
NOT_IN_ALL_TABLES = "not_in_all_tables"  # captioned here, but not in every table
NOT_CHOSEN = "not_chosen"  # a picture that --only leaves out, here or in another table
OTHER_SPLIT = "other_split"  # a row whose picture is of a split that was not asked for


class Outcome(NamedTuple):
    """Whether one row or picture was scored, and why if not."""

    key: str
    outcome: str
    caption: str
    reason: str = ""
    row: int = -1  # of the table; -1 where it has none


@dataclass(frozen=True)
class Alignment:
    """The pictures to score, in the order of the references, with their captions in each table."""

    tables: tuple[CaptionTable, ...]
    keys: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]  # for each table, in the order of `keys`
    references: tuple[tuple[str, ...], ...]
    outcomes: tuple[tuple[Outcome, ...], ...]  # for each table
    matched_by: tuple[str, ...]  # for each table: key, name, stem or number
    # Captions of the training split; empty if some of its pictures are scored.
    training_captions: frozenset[str]
    splits: frozenset[str]  # of the scored pictures

    @property
    def complete(self) -> bool:
        """Whether all pictures that were asked for are scored, and all rows except those of other
        splits."""
        complete = (JUDGED, NOT_CHOSEN, OTHER_SPLIT)
        return all(one.outcome in complete for own in self.outcomes for one in own)


def align(tables: Sequence[CaptionTable], references: References, options: Evaluate) -> Alignment:
    """Match tables with references. Raises UserError if there is nothing to score."""
    wanted = references.keys_of_split(options.split)
    matched = [_match(table, references, options.match) for table in tables]
    rows = [
        _MatchedRows(table, picture_of, references, wanted, options.absent_as_empty)
        for table, (picture_of, _) in zip(tables, matched, strict=True)
    ]
    keys = tuple(key for key in wanted if all(key in own.captions for own in rows))
    if not keys:
        raise UserError(_why_nothing(rows, references, options))
    scored = set(keys)
    training = {key for key, split in references.splits.items() if split == "train"}
    training_captions: set[str] = set()
    if not training & scored:
        training_captions.update(text for key in training for text in references.captions[key])
    return Alignment(
        tables=tuple(tables),
        keys=keys,
        captions=tuple(tuple(own.captions[key] for key in keys) for own in rows),
        references=tuple(tuple(references.captions[key]) for key in keys),
        outcomes=tuple(tuple(own.outcomes(scored)) for own in rows),
        matched_by=tuple(rule for _, rule in matched),
        training_captions=frozenset(training_captions),
        splits=frozenset(references.splits[key] for key in keys),
    )


class _MatchedRows:
    """The rows of one table by picture. `picture_of` maps keys of rows to keys of pictures."""

    def __init__(
        self,
        table: CaptionTable,
        picture_of: Mapping[str, str],
        references: References,
        wanted: Sequence[str],
        absent_as_empty: bool,
    ) -> None:
        self.table = table
        found: dict[str, Outcome] = {}
        self._others: list[Outcome] = []
        asked = set(wanted)
        for row_outcome in unmatched_outcomes(table):
            key = picture_of.get(row_outcome.key)
            if key is None:
                reason = "no picture of the references has this key"
                self._others.append(row_outcome._replace(outcome=EXTRA, reason=reason))
                continue
            row_outcome = row_outcome._replace(key=key)
            if key in references.uncaptioned:
                reason = "the references have no caption of it"
                self._others.append(
                    row_outcome._replace(outcome=WITHOUT_REFERENCES, reason=reason)
                )
            elif key not in asked:
                reason = f"split {references.splits[key] or '(none)'}"
                self._others.append(row_outcome._replace(outcome=OTHER_SPLIT, reason=reason))
            else:
                found[key] = row_outcome
        self._pictures: dict[str, Outcome] = {}
        self.captions: dict[str, str] = {}
        absent, reason = MISSING, "the table has no row of it"
        if table.is_narrowed:
            absent, reason = NOT_CHOSEN, "the table has no row of it that --only chooses"
        for key in wanted:
            outcome = found.get(key) or Outcome(key, absent, "", reason)
            self._pictures[key] = outcome
            if outcome.outcome == JUDGED:
                self.captions[key] = outcome.caption
            elif absent_as_empty and outcome.outcome != NOT_CHOSEN:
                self.captions[key] = ""

    def outcomes(self, scored: set[str]) -> Iterator[Outcome]:
        """The outcomes of all wanted pictures in order, then those of the other rows."""
        for key, outcome in self._pictures.items():
            if outcome.outcome == JUDGED and key not in scored:
                reason = "another table has no caption of it"
                missed = NOT_CHOSEN if self.table.is_narrowed else NOT_IN_ALL_TABLES
                outcome = outcome._replace(outcome=missed, reason=reason)
            yield outcome
        yield from self._others


def unmatched_outcomes(table: CaptionTable) -> Iterator[Outcome]:
    """The outcome of each row without references: JUDGED or FAILED."""
    names = ("key", "caption", "status", "error_message")
    columns = [table.rows[name].to_pylist() for name in names]
    for row, (key, caption, status, reason) in enumerate(zip(*columns, strict=True)):
        if status == SUCCESS:
            yield Outcome(key, JUDGED, caption, "", row)
        else:
            yield Outcome(key, FAILED, caption, f"{status}: {reason}" if reason else status, row)


_LAST_NUMBER = re.compile(r"(\d+)(?=\D*$)")


def _name(key: str) -> str:
    return key.rstrip("/").rpartition("/")[2]


def _stem(key: str) -> str:
    return _name(key).rpartition(".")[0] or _name(key)


def _number(key: str) -> str:
    """The last number in the stem: 139 of 000000000139.jpg and COCO_val2014_000000000139."""
    found = _LAST_NUMBER.search(_stem(key))
    return str(int(found[1])) if found else ""


# What the keys of a row and of its picture have in common. With --match auto they are tried in
# this order.
RULES: dict[str, Callable[[str], str]] = {
    "key": str,
    "name": _name,
    "stem": _stem,
    "number": _number,
}


def _match(
    table: CaptionTable, references: References, match: Match
) -> tuple[dict[str, str], str]:
    """The picture's key for each key of the table, and the rule that found them."""
    row_keys = table.rows["key"].to_pylist()
    pictures = [*references.captions, *references.uncaptioned]
    for rule in RULES if match == "auto" else (match,):
        # A name that two pictures share is not used.
        named: dict[str, str] = {}
        shared: set[str] = set()
        for key in pictures:
            if rule == "number" and key in references.numbers:
                name = str(references.numbers[key])
            else:
                name = RULES[rule](key)
            if name in named:
                shared.add(name)
            named[name] = key
        found: dict[str, str] = {}
        row_of: dict[str, str] = {}
        for row_key in row_keys:
            name = RULES[rule](row_key)
            if not name or name not in named or name in shared:
                continue
            key = named[name]
            if key in row_of:
                raise UserError(
                    f"{table.path}: the rows {row_of[key]} and {row_key} both mean the picture "
                    f"{key} when matched by {rule}: keep one of them, or say with --match what "
                    "keys and pictures have in common"
                )
            found[row_key], row_of[key] = key, row_key
        if found:
            return found, rule
    return {}, "key" if match == "auto" else match


def _why_nothing(
    matched: Sequence[_MatchedRows], references: References, options: Evaluate
) -> str:
    for rows in matched:
        if not rows.captions:
            own = ", ".join(rows.table.rows["key"].slice(0, 3).to_pylist())
            theirs = ", ".join(list(references.captions)[:3])
            asked = f" of split {options.split}" if options.split else ""
            tried = ", ".join(RULES) if options.match == "auto" else options.match
            return (
                f"no caption of {rows.table.path} belongs to a picture of the references{asked}: "
                f"its keys are {own}, ...; theirs are {theirs}, ... (matched by {tried})"
            )
    return (
        f"no picture has a caption in each of the {len(matched)} tables: evaluate them one by one"
    )
