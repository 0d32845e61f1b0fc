"""Small files of this machine: they take their names complete or not at all."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from raycap.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Where Ray unpacks what `ray job submit --working-dir` brings.
JOBS_COPY = "working_dir_files"


def check_stays(path: str | Path, otherwise: str = "an absolute path") -> None:
    """Refuse a place in the copy of the working directory that a submitted job runs in: Ray deletes it."""
    if JOBS_COPY in Path(path).absolute().parts:
        raise UserError(
            f"{path} would be written into the job's own copy of its working directory, which Ray deletes: give "
            f"{otherwise}"
        )


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write; it takes its name when the block ends well, and leaves nothing when it does not."""
    check_stays(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = beside.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        with file:
            yield file
        beside.replace(path)
    except OSError as error:
        if error.errno in FULL:  # other faults are of the caller's block
            raise UserError(
                f"cannot write {path}: {error.strerror}; free some space, or write elsewhere"
            ) from error
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    with whole_file(path) as file:
        file.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def cache_folder(given: str) -> Path:
    """Where feature tables and unpacked rows are kept on this machine."""
    if given:
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raycap"
