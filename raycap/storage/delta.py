"""Delta tables: which files of a folder are the table now, and how stores are reached.

Their log says it: other files are not in the table yet, or not any more.
"""

import os
import urllib.parse
from collections.abc import Collection, Iterable
from pathlib import Path

from raycap.errors import UserError
from raycap.storage.location import Location
from raycap.uris import has_scheme, is_local, local_path, scheme_of

LOG = "_delta_log"
# Stores that delta-rs reaches, by the scheme of their URIs.
SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
# Tables whose Parquet files hold other rows or columns than the table.
UNREADABLE_FEATURES = {"deletionVectors", "columnMapping"}


def storage_options(uri: str) -> dict[str, str]:
    """How delta-rs reaches a store: as fsspec is told to, otherwise by the usual variables of the
    environment."""
    if is_local(uri):
        return {}
    import fsspec

    options = {}
    if scheme_of(uri).startswith("s3"):
        told = fsspec.config.conf.get("s3", {})
        endpoint = told.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL_S3")
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL", "")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        options = {
            "aws_endpoint_url": endpoint,
            "aws_allow_http": "true" if endpoint.startswith("http://") else "",
            "aws_region": region or "us-east-1",
            "aws_access_key_id": told.get("key", ""),
            "aws_secret_access_key": told.get("secret", ""),
            "aws_session_token": told.get("token", ""),
        }
    return {name: value for name, value in options.items() if value}


def table_of_log(path: str) -> str | None:
    """The folder of the Delta table to whose log a path belongs, relative as the path is; None for
    any other path."""
    steps = path.split("/")
    return "/".join(steps[: steps.index(LOG)]) if LOG in steps else None


def is_private(path: str) -> bool:
    """Whether a file, or a folder on the way to it, begins with '_': readers skip it."""
    return path.startswith("_") or "/_" in path


def files_to_read(
    folder: Location, paths: Iterable[str], tables: Collection[str]
) -> list[Location]:
    """The Parquet files of a folder that hold its rows. `paths` are all of them, and `tables` the
    folders of Delta tables, relative to it.

    Of a Delta table these are the files that its log names. Where there is one, what is beside it
    and begins with '_' belongs to the run that makes it.
    """
    if not tables:
        return [folder / path for path in paths]
    starts = tuple(f"{table}/" if table else "" for table in tables)
    plain = [path for path in paths if not is_private(path) and not path.startswith(starts)]
    files = [folder / path for path in plain]
    for table in tables:
        if not is_private(table):
            files += active_files(folder / table if table else folder)
    return files


def active_files(folder: Location) -> list[Location]:
    """The files of a Delta table in its newest version; none if nothing was committed yet."""
    import pyarrow as pa
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    if folder.filesystem is not None and scheme_of(folder.uri) not in SCHEMES:
        raise UserError(
            f"{folder.uri} is a Delta table, which can be read from disks, s3://, gs:// and az:// "
            "only: copy it there first"
        )
    uri = Path(folder.path).as_uri() if folder.filesystem is None else folder.uri
    try:
        table = DeltaTable(uri, storage_options=storage_options(folder.uri))
        features = {*(table.protocol().reader_features or ())}
        paths = pa.table(table.get_add_actions())["path"].to_pylist()
    except TableNotFoundError:
        return []
    except (DeltaError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot read the log of the Delta table {folder.uri}: {reason[:200]}"
        ) from error
    if found := features & UNREADABLE_FEATURES:
        raise UserError(
            f"{folder.uri} is a Delta table with {', '.join(sorted(found))}, which raycap cannot "
            "read: write its rows to a table without"
        )
    return [_below(folder, urllib.parse.unquote(path)) for path in paths]


def _below(folder: Location, path: str) -> Location:
    """A file of a table. The log may be somebody else's: it names no file outside the table."""
    file = folder / path
    is_outside = has_scheme(path) or path.startswith("/") or ".." in path.split("/")
    if folder.filesystem is None and not is_outside:
        real = os.path.realpath(local_path(folder.uri) or folder.path)
        is_outside = os.path.commonpath([real, os.path.realpath(file.path)]) != real
    if is_outside:
        raise UserError(
            f"the log of the Delta table {folder.uri} names a file outside of it ({path[:200]}): "
            "copy the whole table first"
        )
    return file
