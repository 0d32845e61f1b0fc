"""Reads the logs of Delta tables, which say which files belong to a table.

Other files in its folder are not in the table yet, or not any more.
"""

import os
import urllib.parse
from collections.abc import Collection, Iterable
from pathlib import Path

from raycap.errors import UserError
from raycap.storage.location import Location
from raycap.uris import has_scheme, is_local, local_path, scheme_of

LOG = "_delta_log"
# Schemes of the stores that delta-rs supports.
SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
# Table features with which the Parquet files have other rows or columns than the table.
UNREADABLE_FEATURES = {"deletionVectors", "columnMapping"}


def storage_options(uri: str) -> dict[str, str]:
    """Options for delta-rs: those of fsspec's config, otherwise of the usual environment
    variables."""
    if is_local(uri):
        return {}
    import fsspec

    options = {}
    if scheme_of(uri).startswith("s3"):
        fsspec_options = fsspec.config.conf.get("s3", {})
        endpoint = fsspec_options.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL_S3")
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL", "")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        options = {
            "aws_endpoint_url": endpoint,
            "aws_allow_http": "true" if endpoint.startswith("http://") else "",
            "aws_region": region or "us-east-1",
            "aws_access_key_id": fsspec_options.get("key", ""),
            "aws_secret_access_key": fsspec_options.get("secret", ""),
            "aws_session_token": fsspec_options.get("token", ""),
        }
    return {name: value for name, value in options.items() if value}


def table_of_log(path: str) -> str | None:
    """For a path in the log of a Delta table, the folder of the table; None for other paths."""
    steps = path.split("/")
    return "/".join(steps[: steps.index(LOG)]) if LOG in steps else None


def is_private(path: str) -> bool:
    """Whether a name in the path begins with '_'. Readers skip such files."""
    return path.startswith("_") or "/_" in path


def files_to_read(
    folder: Location, paths: Iterable[str], tables: Collection[str]
) -> list[Location]:
    """The Parquet files with the rows of a folder. `paths` are all its Parquet files, `tables` the
    folders in it that are Delta tables; both are relative to the folder.

    For a Delta table these are the files in its log. If the folder has a Delta table, other files
    whose names begin with '_' belong to the run that makes the table, and are left out.
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
    """The files of the newest version of a Delta table; none if nothing was committed yet."""
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
    """The location of a file of a table. Raises UserError if it is outside the table's folder: the
    log may come from somebody else."""
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
