"""Caption tables and references brought together picture by picture; what does not fit is counted and named."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raycap.errors import UserError
from raycap.evaluation.captions import CaptionTable
from raycap.evaluation.options import Evaluate, Match
from raycap.evaluation.references import References
from raycap.schema import SUCCESS
from raycap.sources.splits import split_word

# What became of a picture or a row in an evaluation.
JUDGED = "judged"
FAILED = "failed"  # the row says that the picture was not captioned
MISSING = "missing"  # a picture with references that the table has no row for
EXTRA = "extra"  # a row that no picture of the references belongs to
SILENT = "without_references"  # a row whose picture has no human caption
ELSEWHERE = "not_in_all_tables"  # captioned here, but not in every table that it is compared with
OTHER_SPLIT = "other_split"  # a row whose picture is of a split that was not asked for


class Fate(NamedTuple):
    """What became of one row or picture, and why if it was not judged."""

    key: str
    outcome: str
    caption: str
    reason: str = ""
    row: int = -1  # of the table; -1 where it has none


@dataclass(frozen=True)
class Lineup:
    """The pictures to judge, in the references' order, with the caption that each table has for them."""

    tables: tuple[CaptionTable, ...]
    keys: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]  # for each table, in the order of `keys`
    references: tuple[tuple[str, ...], ...]
    fates: tuple[tuple[Fate, ...], ...]  # for each table
    matched_by: tuple[str, ...]  # for each table: key, name, stem or number
    learned: frozenset[str]  # captions of the training split, where none of its pictures is judged
    splits: frozenset[str]  # of the judged pictures

    @property
    def complete(self) -> bool:
        """Whether every picture that was asked for, and every row of those, was judged."""
        return all(fate.outcome in (JUDGED, OTHER_SPLIT) for fates in self.fates for fate in fates)


def align(tables: Sequence[CaptionTable], references: References, options: Evaluate) -> Lineup:
    """Bring them together; a refusal where nothing is left to judge."""
    asked = wanted(references, options.split)
    matched = [_matched(table, references, options.match) for table in tables]
    found = [
        _Found(table, names, references, asked, options.absent_as_empty)
        for table, (names, _) in zip(tables, matched, strict=True)
    ]
    keys = tuple(key for key in asked if all(key in each.captions for each in found))
    if not keys:
        raise UserError(_nothing(found, references, options))
    judged = set(keys)
    training = {key for key, split in references.splits.items() if split == "train"}
    learned = (
        ()
        if training & judged
        else (text for key in training for text in references.captions[key])
    )
    return Lineup(
        tables=tuple(tables),
        keys=keys,
        captions=tuple(tuple(each.captions[key] for key in keys) for each in found),
        references=tuple(tuple(references.captions[key]) for key in keys),
        fates=tuple(tuple(each.fates(judged)) for each in found),
        matched_by=tuple(rule for _, rule in matched),
        learned=frozenset(learned),
        splits=frozenset(references.splits[key] for key in keys),
    )


class _Found:
    """The rows of one table, each with its picture; `names` gives the picture's key for a row's."""

    def __init__(
        self,
        table: CaptionTable,
        names: Mapping[str, str],
        references: References,
        wanted: Sequence[str],
        absent_as_empty: bool,
    ) -> None:
        self.table = table
        found: dict[str, Fate] = {}
        self._others: list[Fate] = []
        asked = set(wanted)
        columns = [
            table.rows[name].to_pylist() for name in ("key", "caption", "status", "error_message")
        ]
        for row, (row_key, caption, status, reason) in enumerate(zip(*columns, strict=True)):
            key = names.get(row_key)
            if key is None:
                self._others.append(
                    Fate(row_key, EXTRA, caption, "no picture of the references has this key", row)
                )
            elif key in references.silent:
                self._others.append(
                    Fate(key, SILENT, caption, "the references hold no caption of it", row)
                )
            elif key not in asked:
                split = references.splits[key] or "(none)"
                self._others.append(Fate(key, OTHER_SPLIT, caption, f"split {split}", row))
            else:
                found[key] = fate_of(key, caption, status, reason, row)
        self._pictures = {
            key: found.get(key) or Fate(key, MISSING, "", "the table has no row of it")
            for key in wanted
        }
        self.captions = {
            key: fate.caption if fate.outcome == JUDGED else ""
            for key, fate in self._pictures.items()
            if fate.outcome == JUDGED or absent_as_empty
        }

    def fates(self, judged: set[str]) -> Iterable[Fate]:
        """Every wanted picture in order, then the rows that belong to none of them."""
        for key, fate in self._pictures.items():
            if fate.outcome == JUDGED and key not in judged:
                fate = fate._replace(
                    outcome=ELSEWHERE, reason="another table has no caption of it"
                )
            yield fate
        yield from self._others


def fate_of(key: str, caption: str, status: str, reason: str, row: int) -> Fate:
    """Of a row on its own."""
    if status == SUCCESS:
        return Fate(key, JUDGED, caption, "", row)
    return Fate(key, FAILED, caption, f"{status}: {reason}" if reason else status, row)


def wanted(references: References, split: str) -> list[str]:
    """The pictures of a split that have captions; a refusal where there are none."""
    split = split_word(split)
    if not split:
        return list(references.captions)
    found = [key for key in references.captions if references.splits[key] == split]
    if not found:
        known = sorted({name for name in references.splits.values() if name})
        raise UserError(
            f"no picture of the references is of split {split!r}; they have {', '.join(known) or 'no splits'}"
        )
    return found


_LAST_NUMBER = re.compile(r"(\d+)(?=\D*$)")


def _name(key: str) -> str:
    return key.rstrip("/").rpartition("/")[2]


def _stem(key: str) -> str:
    return _name(key).rpartition(".")[0] or _name(key)


def _number(key: str) -> str:
    """The last number in the stem: 139 of 000000000139.jpg and of COCO_val2014_000000000139."""
    found = _LAST_NUMBER.search(_stem(key))
    return str(int(found[1])) if found else ""


RULES: dict[str, Callable[[str], str]] = {
    "key": str,
    "name": _name,
    "stem": _stem,
    "number": _number,
}


def _matched(
    table: CaptionTable, references: References, match: Match
) -> tuple[dict[str, str], str]:
    """For each key of the table the picture's key in the references, and the rule that found them."""
    rows = table.rows["key"].to_pylist()
    pictures = [*references.captions, *references.silent]
    for rule in RULES if match == "auto" else (match,):
        known = _by(rule, pictures, references.numbers)
        found = {row: known[said] for row in rows if (said := RULES[rule](row)) in known and said}
        if found:
            _refuse_unclear(found, rule, table)
            return found, rule
    return {}, "key" if match == "auto" else match


def _by(rule: str, pictures: Sequence[str], numbers: Mapping[str, int]) -> dict[str, str]:
    """What each picture is called under the rule; names that several share mean none."""
    says = RULES[rule]
    called: dict[str, str] = {}
    shared: set[str] = set()
    for key in pictures:
        name = str(numbers[key]) if rule == "number" and key in numbers else says(key)
        if name in called:
            shared.add(name)
        called[name] = key
    return {name: key for name, key in called.items() if name not in shared}


def _refuse_unclear(found: Mapping[str, str], rule: str, table: CaptionTable) -> None:
    rows: dict[str, str] = {}
    for row, key in found.items():
        if key in rows:
            raise UserError(
                f"{table.path}: the rows {rows[key]} and {row} both mean the picture {key} when matched by {rule}: "
                "keep one of them, or say with --match what keys and pictures have to share"
            )
        rows[key] = row


def _nothing(found: Sequence[_Found], references: References, options: Evaluate) -> str:
    for each in found:
        if not each.captions:
            said = ", ".join(each.table.rows["key"].slice(0, 3).to_pylist())
            theirs = ", ".join(list(references.captions)[:3])
            asked = f" of split {options.split}" if options.split else ""
            tried = ", ".join(RULES) if options.match == "auto" else options.match
            return (
                f"no caption of {each.table.path} belongs to a picture of the references{asked}: its keys are "
                f"{said}, ...; theirs are {theirs}, ... (matched by {tried})"
            )
    return f"no picture has a caption in each of the {len(found)} tables: evaluate them one by one"
