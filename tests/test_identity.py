"""A folder holds the rows of one run. Options that a later version adds do not refuse earlier
runs, as long as they change nothing."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from small_captioner import photos
from toy_captioner import SizeCaptioner, SizeOptions

from raycap.bulk.captions import captions_job
from raycap.bulk.identity import differences_from, origin
from raycap.bulk.job import TableJob
from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.captioners.protocol import Placement
from raycap.cluster import Cluster
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.options import from_plain, to_plain
from raycap.search import SEARCHES
from raycap.sources import Folder
from raycap.storage import RunFolder

pytestmark = pytest.mark.usefixtures("no_ray")

RECORD = Path(__file__).parent / "data" / "run-of-0.1.0.json"


@dataclass(frozen=True)
class OldOptions(SizeOptions):
    """Has the identity of the captioner that wrote the record, with the search's present
    options."""

    def identity(self) -> dict[str, Any]:
        recorded = json.loads(RECORD.read_text())["identity"]
        search = from_plain(SEARCHES, recorded["search"], "search")
        return {
            "captioner": recorded["captioner"],
            "search": to_plain(search, SEARCHES),
            "attention": False,
        }

    def placement(self) -> Placement:
        return Placement(precision="auto")

    def in_precision(self, precision: str) -> "OldOptions":
        return self

    def open(self, device: str, threads: int | None) -> SizeCaptioner:
        return SizeCaptioner(self)


def job(folder: Path, out: Path, reading: Reading | None = None, **options: Any) -> TableJob:
    """The same command as that of the record."""
    asked = CaptionOptions(out=str(out), batch=4, **options)
    how = (Fetch(), reading or Reading(), Cluster())
    return captions_job(OldOptions(), Folder(str(folder)), asked, *how)


def record_of(folder: Path) -> dict[str, Any]:
    """What raycap 0.1.0 wrote for that command."""
    return dict(json.loads(RECORD.read_text().replace("PHOTOS", str(folder))))


def test_a_run_of_version_0_1_0_has_the_same_identity_now(tmp_path: Path) -> None:
    assert differences_from(job(tmp_path, tmp_path / "out"), record_of(tmp_path)) == []


@pytest.mark.parametrize("is_asked", [False, True], ids=["auto", "fp32"])
def test_a_run_of_version_0_1_0_that_had_no_rows_yet_is_gone_on_with(
    is_asked: bool, tmp_path: Path
) -> None:
    folder, out = photos(tmp_path / "photos", range(3)), tmp_path / "out"
    RunFolder(str(out)).write_json("run.json", record_of(folder))
    mine = job(folder, out)
    if is_asked:
        mine = replace(mine, options=replace(mine.options, precision="fp32"))
    for _ in range(2):
        assert run_job(mine, {}) == 0
    assert json.loads((out / "run.json").read_text())["identity"]["precision"] == "fp32"


def test_a_finished_table_of_version_0_1_0_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", range(3)), RunFolder(str(tmp_path / "out"))
    out.write_json("run.json", record_of(folder))
    out.write("captions/part-00000.parquet", b"")
    with pytest.raises(UserError, match=r"0\.1\.0, .*another --out, or --overwrite"):
        run_job(job(folder, tmp_path / "out"), {})


def paths(identity: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The place of each option."""
    found = []
    for name, value in identity.items():
        found += paths(value, (*prefix, name)) if isinstance(value, dict) else [(*prefix, name)]
    return found


def without(record: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """As a version of raycap would have written it that did not have this option."""
    shorter: dict[str, Any] = json.loads(json.dumps(record))
    place = shorter["identity"]
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    return shorter


def test_an_option_that_an_earlier_version_did_not_have_counts_if_it_changes_something(
    tmp_path: Path,
) -> None:
    usual = job(tmp_path, tmp_path / "out")
    other = job(
        tmp_path,
        tmp_path / "out",
        Reading(background="#000000", max_side=7, max_aspect=7, salvage_truncated=True),
    )
    other = replace(other, source=replace(other.source, glob="*.jpg"))  # type: ignore[type-var]
    glob = {**other.identity["source"], "glob": "*.jpg"}
    other = replace(other, identity={**other.identity, "source": glob})
    changed = {
        ("reading", "background"),
        ("reading", "max_side"),
        ("reading", "max_aspect"),
        ("reading", "salvage_truncated"),
        ("source", "glob"),
    }
    needed = {("source", "kind"), ("source", "path"), ("captioner",), ("search", "kind")}
    for each, refused in ((usual, set()), (other, changed)):
        identity = {name: value for name, value in origin(each).items() if name != "act"}
        record = {"act": "caption", "identity": identity}
        assert differences_from(each, record) == []
        for path in set(paths(identity)) - needed:
            # The search of the record is not the default one.
            if path[0] != "search":
                different = differences_from(each, without(record, path))
                assert bool(different) == (path in refused), (path, different)
