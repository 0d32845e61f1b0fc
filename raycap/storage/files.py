"""Atomic writes of local files: a file appears under its name when it is complete."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from raycap.errors import UserError

DISC_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Where Ray unpacks what `ray job submit --working-dir` uploads.
JOB_FOLDER = "working_dir_files"


def check_stays(path: str | Path, instead: str = "an absolute path") -> None:
    """Raises UserError for a path in a submitted job's working directory: Ray deletes that."""
    if JOB_FOLDER in Path(path).absolute().parts:
        raise UserError(
            f"{path} would be written into the job's own copy of its working directory, "
            f"which Ray deletes: give {instead}"
        )


@contextlib.contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Yields a hidden path beside `path`; the caller's block writes a file or a folder there.

    When the block ends, that is renamed to `path` and replaces what was there. After an exception
    it is removed, and `path` stays as it was.

        with whole_path(Path("curve.png")) as part:
            figure.savefig(part, format="png")
    """
    # Hidden names for the new content, and for a folder that is replaced.
    part, old = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("part", "old"))
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(part)  # left by a killed process with the same process id
    try:
        yield part
        if part.is_dir() and path.exists():
            path.rename(old)  # a folder cannot be renamed over a full one
        part.replace(path)
    finally:
        _remove(part)
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write. It appears under its name when the block ends without an exception;
    see `whole_path`."""
    check_stays(path)
    opened = False
    try:
        with whole_path(path) as part, part.open("w", encoding="utf-8") as file:
            opened = True
            yield file
    except OSError as error:
        if not opened:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        if error.errno not in DISC_IS_FULL:
            raise  # it may come from the caller's block
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space, or write elsewhere"
        ) from error


@contextlib.contextmanager
def in_temporary_files() -> Iterator[None]:
    """Says what to do if the block cannot write its temporary files."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write temporary files to {tempfile.gettempdir()}: {error}; free some space, "
            "or name another folder in the environment variable TMPDIR"
        ) from error


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file atomically."""
    with whole_file(path) as file:
        file.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def cache_folder(given: str) -> Path:
    """The folder for feature tables and unpacked rows on this machine: `given`, or the default."""
    if given:
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raycap"
