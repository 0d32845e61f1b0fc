"""Whether a folder holds the rows of this run or of another one."""

import json
from collections.abc import Mapping
from typing import Any

from raycap import __version__
from raycap.bulk.job import RUN, TableJob
from raycap.device import PrecisionName
from raycap.errors import UserError
from raycap.images import Reading
from raycap.options import from_plain, to_plain
from raycap.search import SEARCHES
from raycap.sources import SOURCES
from raycap.storage import RunFolder, differences

# The defaults of --reading.formats in versions that accepted fewer.
FORMATS_OF_OLDER_VERSIONS = (("jpeg", "png", "webp", "gif", "bmp", "tiff", "heif", "avif"),)
# Versions that did not record a precision had this one.
ONLY_PRECISION_OF_OLDER_VERSIONS: PrecisionName = "fp32"


def write_record(job: TableJob, out: RunFolder, identity: Mapping[str, Any]) -> None:
    """Write down which rows the folder holds, if that is not what its record says."""
    of_rows = {name: value for name, value in identity.items() if name != "act"}
    record = {
        "raycap": __version__,
        "act": identity.get("act"),
        "table": job.table,
        "identity": of_rows,
    }
    earlier = out.read_json(RUN) or {}
    if earlier.get("identity") != of_rows or earlier.get("act") != record["act"]:
        out.write_json(RUN, record)


def check_same(job: TableJob, record: Mapping[str, Any] | None, out: RunFolder) -> None:
    """Raise UserError if the folder with this record holds other rows than those of this job."""
    if different := differences_from(job, record):
        raise UserError(
            f"{out} holds rows of another run ({'; '.join(different)}): give another --out, or "
            "--overwrite to replace them"
        )


def differences_from(job: TableJob, record: Mapping[str, Any] | None) -> list[str]:
    """What differs between the run with this record and this one, a line for each option."""
    if record is None:
        return []
    # A flag is no part of the identity. Earlier versions had one option for one of them there.
    identity = dict(record.get("identity", {}))
    identity.pop("min_score", None)
    # More formats are accepted by default than in older versions. If a run had the default then,
    # it takes today's.
    reading = identity.get("reading", {})
    formats = job.identity.get("reading", {}).get("formats")
    had_default = tuple(reading.get("formats", ())) in FORMATS_OF_OLDER_VERSIONS
    if had_default and formats == list(Reading().formats):
        identity = {**identity, "reading": {**reading, "formats": formats}}
    now = origin(job)
    return differences(_with_added_options({"act": record.get("act"), **identity}, now), now)


def _with_added_options(earlier: dict[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of an earlier run, with the options that its version of raycap did not have.
    They had the values that change nothing: their defaults, or none."""
    filled = {name: value for name, value in now.items() if value in (None, False, "", [], {})}
    if "precision" in now:
        filled["precision"] = ONLY_PRECISION_OF_OLDER_VERSIONS
    filled |= earlier
    parts: tuple[tuple[str, Any], ...] = (
        ("source", SOURCES),
        ("reading", Reading),
        ("search", SEARCHES),
    )
    for name, kinds in parts:
        if not isinstance(given := earlier.get(name), dict) or name not in now:
            continue
        try:
            known = {key: value for key, value in given.items() if key != "of_split"}
            options = from_plain(kinds, known, name)
        except UserError:  # of an option that is not there any more
            continue
        with_defaults = to_plain(options, None if kinds is Reading else kinds)
        added = {key: with_defaults[key] for key in now[name] if key in with_defaults}
        filled[name] = {**added, **given}
    return filled


def origin(job: TableJob) -> dict[str, Any]:
    """What distinguishes rows of this run from those of any other, as JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps({"act": job.command, **job.identity}))
    return found
