"""Counting what a pile of pictures holds, without Ray."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.errors import UserError
from raycap.inspection import MOST_NAMES, OTHERS, Copies, Inspection, Tally, as_text
from raycap.schema import CAPTIONS, FAILED_TO_DECODE, MANIFEST, SUCCESS, fit
from raycap.storage import whole_file, write_json


def row(key: str, **fields: object) -> dict[str, object]:
    defaults = {
        "uri": f"/photos/{key}",
        "split": "",
        "references": [],
        "status": SUCCESS,
        "error_message": "",
    }
    picture = {
        "format": "jpeg",
        "width": 640,
        "height": 480,
        "sha256": f"{hash(key) & 0xFFFFFFFF:064x}",
    }
    return {"key": key, **defaults, **picture, **fields}


def bad(key: str, reason: str) -> dict[str, object]:
    return row(key, status=FAILED_TO_DECODE, error_message=reason, format="", width=0, height=0)


def inspected(rows: list[dict[str, object]], examples: int = 2) -> dict:
    with Inspection(examples) as inspection:
        for one in rows:  # the answer must not depend on how rows come
            inspection.add(pa.Table.from_pylist([one]))
        return {**inspection.report(), "notes": []}


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 9)), max_size=60))
def test_copies_are_counted_as_a_set_would(pictures: list[tuple[str, int]]) -> None:
    named = [(digest * 64, str(number)) for digest, number in pictures]
    copies = Copies()
    for one in named:
        copies.add(iter([one]))
    report = copies.report(most_examples=3)
    copies.close()
    digests = [digest for digest, _ in named]
    assert report["pictures"] == len(digests) - len(set(digests))
    assert report["groups"] == sum(digests.count(digest) > 1 for digest in set(digests))


def test_everything_adds_up() -> None:
    rows = [
        row("a.jpg", split="train", references=["one", "two"]),
        row("b.jpg", split="train", references=["one"], width=100, height=5000),
        bad("c.jpg", "zero bytes"),
        bad("d.jpg", "zero bytes"),
        bad("e.jpg", "zero bytes"),
        bad("f.jpg", "truncated png"),
    ]
    report = inspected(rows)
    assert (report["rows"], report["readable"], report["failed"], report["captions"]) == (
        6,
        2,
        4,
        3,
    )
    assert report["splits"] == {"": 4, "train": 2}
    assert report["captions_per_picture"] == {"0": 4, "1": 1, "2": 1}
    assert report["longer_side"] == {"512-1023": 1, "4096-8191": 1}
    assert [(reason["reason"], reason["rows"]) for reason in report["reasons"]] == [
        ("zero bytes", 3),
        ("truncated png", 1),
    ]
    assert report["reasons"][0]["examples"] == ["c.jpg", "d.jpg"]
    json.dumps(report)


def test_a_pile_of_different_reasons_does_not_fill_the_memory() -> None:
    tally = Tally()
    for number in range(MOST_NAMES + 50):
        tally.add(f"reason {number}")
    assert dict(tally.items())[OTHERS] == 50
    assert len(tally.items()) == MOST_NAMES + 1


def test_hostile_names_cannot_write_to_the_terminal() -> None:
    text = as_text(inspected([bad("evil\x1b[2J\n.jpg", "not a picture: \x07")]))
    assert "\x1b" not in text and "\x07" not in text and r"evil\x1b[2J\n.jpg" in text


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"first": 1})
    with pytest.raises(KeyError), whole_file(path) as file:
        file.write("half")
        raise KeyError
    assert json.loads(path.read_text()) == {"first": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*report\.json"):
        write_json(tmp_path / "file" / "report.json", {})


def test_fit_selects_casts_and_carries() -> None:
    table = pa.table(
        {
            "uri": ["u"],
            "key": ["k"],
            "split": [""],
            "references": [["r"]],
            "bytes": [None],
            "error": [""],
            "mine": [1],
        }
    )
    assert fit(table, MANIFEST).schema == MANIFEST
    assert fit(table, MANIFEST, carry=["mine"]).column_names == [*MANIFEST.names, "mine"]
    with pytest.raises(UserError, match="caption"):
        fit(table, CAPTIONS)
