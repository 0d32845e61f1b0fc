"""Whether a folder holds the rows of this run or of another one."""

import json
from collections.abc import Mapping
from typing import Any

from raycap import __version__
from raycap.bulk.job import RUN, TableJob
from raycap.errors import UserError
from raycap.images import Reading
from raycap.storage import RunFolder, differences

# The defaults of --reading.formats in versions that accepted fewer.
FORMATS_OF_OLDER_VERSIONS = (("jpeg", "png", "webp", "gif", "bmp", "tiff", "heif", "avif"),)


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
    identity = record.get("identity", {})
    # More formats are accepted by default than in older versions. If a run had the default then,
    # it takes today's.
    reading = identity.get("reading", {})
    formats = job.identity.get("reading", {}).get("formats")
    had_default = tuple(reading.get("formats", ())) in FORMATS_OF_OLDER_VERSIONS
    if had_default and formats == list(Reading().formats):
        identity = {**identity, "reading": {**reading, "formats": formats}}
    return differences({"act": record.get("act"), **identity}, origin(job))


def origin(job: TableJob) -> dict[str, Any]:
    """What distinguishes rows of this run from those of any other, as JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps({"act": job.command, **job.identity}))
    return found
