"""The output table, a Delta table that is changed by commits only.

Every commit has a transaction id and the number of its operation (1 for the first run, 2 for a
retry after it, and so on). Of two such commits on the same version of the table, Delta lets one
succeed. The other fails, loads the new version, and compares again. So each chunk comes into the
table once, however many processes commit, even if one of them was believed dead.

Files of chunks are in the folder `_chunks`, which readers of plain Parquet folders skip. At the
end of an operation they are joined into parts, which such readers see.
"""

import json
import logging
import random
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import (
    CommitFailedError,
    DeltaError,
    DeltaProtocolError,
    TableNotFoundError,
)
from deltalake.transaction import AddAction, RemoveAction

from raycap.bulk.plan import Chunk
from raycap.errors import UserError
from raycap.storage import RunFolder
from raycap.storage.delta import SCHEMES, storage_options
from raycap.storage.retry import with_retries
from raycap.uris import scheme_of

log = logging.getLogger(__name__)

CHUNKS = "_chunks"
# Transaction ids under which the log has the newest operation, and the newest complete operation.
OPERATION, COMPLETE = "raycap", "raycap-complete"
# If commits fail for so long, the run ends. It can be resumed.
SECONDS_TO_COMMIT = 180.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
# Messages of delta-rs for faults that stay: no permission, a disk that is full or read-only, a
# damaged log.
PERMANENT = re.compile(
    r"os error (?:1|13|28|30|122)\b|AccessDenied|Forbidden|NoSuchBucket|InvalidAccessKey"
    r"|Json error"
)
# And for those of a disk that is full, or of a quota.
FULL = re.compile(r"os error (?:28|122)\b")
# Messages of delta-rs where files of the log are missing.
GONE = re.compile(r"not found|Invalid table version", re.IGNORECASE)


class TakenOverError(UserError):
    """Another process has begun a later operation or completed this one. This one must stop."""


def taken_over(folder: RunFolder) -> TakenOverError:
    """The error of a run that must stop, because another one has gone on with the table."""
    return TakenOverError(
        f"another run has gone on with {folder}: this one stops; what both have made is in the "
        "table once"
    )


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of the table."""

    path: str  # relative to the table's folder
    size: int  # bytes
    rows: int


@dataclass(frozen=True)
class ChunkFile(DataFile):
    """A file with the rows of one chunk."""

    chunk: Chunk


class OutputTable:
    """A Delta table. Properties describe the version that was loaded last."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._uri = delta_uri(folder)
        self._options = storage_options(folder.uri)
        self._table: DeltaTable | None = None
        # A cache of `chunks`, for the version in `_chunks_version`.
        self._chunks: dict[Chunk, str] = {}
        self._chunks_version = -1
        # The numbers that the log has for transaction ids, for the version in `_numbers_version`.
        # Asking for one reads all of the log since its last checkpoint.
        self._numbers: dict[str, int] = {}
        self._numbers_version = -1
        self.load()

    def load(self) -> None:
        """Load the newest version, if the table exists. Raises UserError if its log cannot be
        read."""
        _with_retries(self._load, f"cannot read the table {self.folder}")

    def _load(self) -> None:
        try:
            if self._table is None:
                self._table = DeltaTable(self._uri, storage_options=self._options)
            else:
                self._table.update_incremental()
        except TableNotFoundError:
            self._table = None

    @property
    def exists(self) -> bool:
        return self._table is not None

    @property
    def version(self) -> int:
        return -1 if self._table is None else self._table.version()

    @property
    def operation(self) -> int:
        """The newest operation that has begun; 0 for none."""
        return self._transaction(OPERATION)

    @property
    def completed(self) -> int:
        """The newest operation that is complete; 0 for none."""
        return self._transaction(COMPLETE)

    def _transaction(self, name: str) -> int:
        """The number that the log has for a transaction id; 0 for none."""
        if self._table is None:
            return 0
        if self._numbers_version != self.version:
            self._numbers, self._numbers_version = {}, self.version
        if name not in self._numbers:
            self._numbers[name] = self._table.transaction_version(name) or 0
        return self._numbers[name]

    def schema(self) -> pa.Schema:
        assert self._table is not None
        return pa.schema(self._table.schema().to_arrow())

    def files(self) -> list[DataFile]:
        """The files of the table, sorted by path."""
        if self._table is None:
            return []
        actions = pa.table(self._table.get_add_actions(flatten=True))
        columns = [actions[name].to_pylist() for name in ("path", "size_bytes", "num_records")]
        return sorted(
            (DataFile(*values) for values in zip(*columns, strict=True)),
            key=lambda file: file.path,
        )

    def chunks(self) -> dict[Chunk, str]:
        """The chunks that are in the table, with the paths of their files."""
        if self._chunks_version != self.version:
            paths = [file.path for file in self.files() if file.path.startswith(f"{CHUNKS}/")]
            self._chunks = {chunk_of(path): path for path in paths}
            self._chunks_version = self.version
        return self._chunks

    def check_open(self, plan: int) -> None:
        """Raise TakenOverError if the plan with this number is complete, or a later one."""
        self.load()
        if self.completed >= plan:
            raise taken_over(self.folder)

    def begin(self, operation: int, plan: int | None = None) -> None:
        """Begin an operation: from now on, commits for earlier operations are refused. `plan` is
        the number of the plan that is worked on or given up, if it is another one. Raises
        TakenOverError if another process has completed it."""
        plan = operation if plan is None else plan

        def actions() -> list[Any] | None:
            if self.completed >= plan:
                raise taken_over(self.folder)
            return [] if self.operation < operation else None

        self._commit(operation, actions)

    def commit_chunks(
        self, files: Sequence[ChunkFile], operation: int, schema: pa.Schema
    ) -> list[ChunkFile]:
        """Add files of chunks to the table, except for chunks that are there already. Returns the
        files that are in the table now. The chunks of the others were also made, and committed
        first, by another process."""
        if self._table is None:
            self._create(schema)
        file_of = {file.chunk: file for file in files}
        plan = min((chunk.operation for chunk in file_of), default=operation)
        new: list[ChunkFile] = []

        def actions() -> list[Any] | None:
            if self.completed >= plan:  # its chunks are already joined into parts
                raise taken_over(self.folder)
            held = self.chunks()
            new[:] = [file for file in file_of.values() if file.chunk not in held]
            return [_add(file) for file in new] or None

        if self._commit(operation, actions):  # update the cache instead of listing all files
            self._chunks |= {file.chunk: file.path for file in new}
            self._chunks_version = self.version
        held = self.chunks()
        return [file for file in file_of.values() if held.get(file.chunk) == file.path]

    def replace(
        self,
        operation: int,
        added: Sequence[DataFile],
        removed: Sequence[DataFile],
        schema: pa.Schema | None = None,
    ) -> bool:
        """Complete an operation: remove and add files in one commit. With a `schema`, the added
        files replace the whole table, and `removed` is not used. Returns False if another process
        has completed it. Raises TakenOverError if one of the removed files is not in the table any
        more: the added ones may double its rows."""
        is_open = True
        if self._table is None:
            assert schema is not None
            self._create(schema)

        def actions() -> list[Any] | None:
            nonlocal is_open
            if self.completed >= operation:  # another process has completed it
                is_open = False
                return None
            if schema is not None:
                return list(map(_add, added))
            if not {file.path for file in removed} <= {file.path for file in self.files()}:
                raise taken_over(self.folder)
            now = int(time.time() * 1000)
            removals = [RemoveAction(file.path, True, now, file.size) for file in removed]
            return [*map(_add, added), *removals]

        self._commit(operation, actions, completes=True, schema=schema)
        return is_open

    def _commit(
        self,
        operation: int,
        actions: Callable[[], list[Any] | None],
        completes: bool = False,
        schema: pa.Schema | None = None,
    ) -> bool:
        """Load the newest version, call `actions`, and commit what it returns. Start again if
        another process has committed in between.

        `actions` returns None if nothing is left to do. Returns True if the newest version
        consists of the version that `actions` saw and this commit, and nothing else.
        """
        transactions = [Transaction(OPERATION, operation)]
        if completes:
            transactions.append(Transaction(COMPLETE, operation))
        # No retries by the library: it would not call `actions` again.
        properties = CommitProperties(app_transactions=transactions, max_commit_retries=0)
        end, pause = time.monotonic() + SECONDS_TO_COMMIT, FIRST_PAUSE
        while True:
            try:
                self._load()
                if self._table is None:  # another run has removed the side table
                    raise taken_over(self.folder)
                if self.operation > operation:
                    raise taken_over(self.folder)
                todo = actions()
                if todo is None:
                    return False
                before = self.version
                self._table.create_write_transaction(
                    todo,
                    "append" if schema is None else "overwrite",
                    schema or self._table.schema(),
                    commit_properties=properties,
                )
                self._load()
                is_newest = self.version == before + 1
                if is_newest and self._numbers_version == before:
                    self._numbers |= {each.app_id: each.version for each in transactions}
                    self._numbers_version = self.version
                return is_newest
            except (CommitFailedError, DeltaError, OSError) as error:
                # The commit may have succeeded, if only the answer was lost. The next round sees
                # it in the newest version.
                reason = _in_one_line(error)
                if GONE.search(reason) and not self.folder.names("_delta_log"):
                    # Another run has removed the side table.
                    raise taken_over(self.folder) from error
                if PERMANENT.search(reason) or time.monotonic() > end:
                    raise UserError(
                        f"cannot commit to {self.folder}: {reason}{_remedy(reason)}; what is made "
                        "stays there, and the same command goes on with it"
                    ) from error
                if not isinstance(error, CommitFailedError):
                    log.warning("cannot commit to %s (%s): trying again", self.folder, reason)
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _create(self, schema: pa.Schema) -> None:
        if self.folder.is_local:
            Path(self.folder.path()).mkdir(parents=True, exist_ok=True)

        def create() -> None:
            try:
                DeltaTable.create(self._uri, schema, storage_options=self._options)
            except (DeltaError, OSError):
                # If the table is there now, another process has created it, or the answer was
                # lost.
                self._load()
                if self._table is None:
                    raise

        _with_retries(create, f"cannot create a table in {self.folder}")
        self.load()


def _with_retries(act: Callable[[], None], complaint: str) -> None:
    """Calls `act`. After faults of delta-rs that may pass it is called again, for about a minute.
    Raises UserError, which begins with the complaint, for faults that stay."""

    def act_once() -> None:
        try:
            act()
        except (DeltaError, OSError) as error:
            reason = f"{complaint}: {_in_one_line(error)}"
            reason += _remedy(reason)
            if PERMANENT.search(reason) or isinstance(error, DeltaProtocolError):
                raise UserError(reason) from error
            raise ConnectionError(reason) from error

    try:
        with_retries(act_once, complaint.removeprefix("cannot "))
    except ConnectionError as error:
        raise UserError(str(error)) from error


def _remedy(reason: str) -> str:
    return "; free some space and run it again" if FULL.search(reason) else ""


def _in_one_line(error: Exception) -> str:
    """The message of an error of delta-rs, without line breaks, colours and arrows."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|↳", " ", str(error)).split())


def _add(file: DataFile) -> AddAction:
    statistics = json.dumps({"numRecords": file.rows})
    return AddAction(file.path, file.size, {}, int(time.time() * 1000), True, statistics)


def chunk_path(chunk: Chunk) -> str:
    """A new path for the file of a chunk. It is random, so two attempts at one chunk write two
    files."""
    return f"{CHUNKS}/{chunk}-{secrets.token_hex(6)}.parquet"


def chunk_of(path: str) -> Chunk:
    """The chunk that the file at this path holds. Its name says so."""
    return Chunk.parse(path.removeprefix(f"{CHUNKS}/").rpartition("-")[0])


def operation_of(path: str) -> int:
    """The number of the operation in the name of a file; 0 if there is none."""
    found = re.match(r"(?:part-)?(\d{4,})-", path.rpartition("/")[2])
    return int(found[1]) if found else 0


def delta_uri(folder: RunFolder) -> str:
    """The folder's URI for delta-rs. Raises UserError if delta-rs cannot write there."""
    if folder.is_local:
        path = folder.path()
        if re.search("%[0-9A-Fa-f]{2}", path):
            raise UserError(
                f"{path} has a percent sign and two digits in it, which a table takes for "
                "an encoded character: give another --out"
            )
        return Path(path).as_uri()
    scheme = scheme_of(folder.uri)
    if scheme not in SCHEMES:
        raise UserError(
            f"tables cannot be written to {scheme}:// ({folder}): give a folder that all machines "
            "share, or s3://, gs:// or az://"
        )
    return folder.uri
