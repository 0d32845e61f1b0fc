"""Whether a folder holds the rows of this run or of another one."""

import json
from typing import Any

from raycap import __version__
from raycap.bulk.job import RUN, TableJob
from raycap.errors import UserError
from raycap.images import Reading
from raycap.storage import RunFolder, differences

# The defaults of --reading.formats in versions that accepted fewer.
FORMATS_OF_OLDER_VERSIONS = (("jpeg", "png", "webp", "gif", "bmp", "tiff", "heif", "avif"),)


def claim_folder(job: TableJob, folder: RunFolder) -> None:
    """Raise UserError if the folder holds other rows than those of this job; mark a new folder."""
    check_same(job, folder)
    if not folder.exists(RUN):
        record = {"raycap": __version__, "act": job.command, "table": job.table}
        folder.write_json(RUN, {**record, "identity": job.identity})


def check_same(job: TableJob, folder: RunFolder) -> None:
    """Raise UserError if the folder holds other rows than those of this job."""
    if different := differences_from(job, folder):
        raise UserError(
            f"{folder} holds rows of another run ({'; '.join(different)}): give another --out, or "
            "--overwrite to replace them"
        )


def differences_from(job: TableJob, folder: RunFolder) -> list[str]:
    """What differs between the run that made the folder and this one, a line for each option."""
    record = folder.read_json(RUN)
    if record is None:
        return [f"{job.table} of unknown origin"] if folder.names(job.table) else []
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
