"""The output table: whoever commits, in whatever order, however late, each chunk is in it once."""

import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.bulk import table as table_module
from raycap.bulk.plan import Chunk
from raycap.bulk.table import ChunkFile, OutputTable, TakenOverError, chunk_of, chunk_path
from raycap.errors import UserError
from raycap.storage import RunFolder

SCHEMA = pa.schema([("key", pa.string())])


def made(folder: Path, chunk: Chunk) -> ChunkFile:
    """What a worker writes for a chunk."""
    path = chunk_path(chunk)
    keys = [f"{chunk.unit}/{chunk.shard}/{row}" for row in range(chunk.start, chunk.stop)]
    content = pa.BufferOutputStream()
    pq.write_table(pa.table({"key": keys}, SCHEMA), content)
    RunFolder(str(folder)).write(path, content.getvalue())
    return ChunkFile(path, content.getvalue().size, len(keys), chunk)


def chunk(number: int, operation: int = 1) -> Chunk:
    return Chunk(operation, 0, number, 0, 2)


def keys(folder: Path) -> list[str]:
    found = DeltaTable(folder).to_pyarrow_table()["key"].to_pylist()
    assert len(set(found)) == len(found), "a key twice"
    return sorted(found)


def test_a_chunk_is_named_by_its_file() -> None:
    one = Chunk(12, 3456, 789, 1024, 11_000)
    assert chunk_of(chunk_path(one)) == one
    assert chunk_path(one) != chunk_path(one), "two tries write two files"


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 5), max_size=4)), max_size=8))
def test_each_chunk_is_committed_once(
    tmp_path_factory: pytest.TempPathFactory, commits: list[tuple[int, set[int]]]
) -> None:
    """Three drivers commit in turns; each knows only what it has seen itself."""
    folder = tmp_path_factory.mktemp("table")
    drivers = [OutputTable(RunFolder(str(folder))) for _ in range(3)]
    expected: set[int] = set()
    counted = 0
    for driver, numbers in commits:
        files = [made(folder, chunk(number)) for number in sorted(numbers)]
        mine = drivers[driver].commit_chunks(files, 1, SCHEMA)
        assert {file.chunk.shard for file in mine} == numbers - expected
        counted += len(mine)
        expected |= numbers
    if commits:
        assert keys(folder) == sorted(f"0/{number}/{row}" for number in expected for row in (0, 1))
        assert counted == len(expected), "a chunk is counted by two drivers, or by none"


def test_drivers_that_commit_at_the_same_moment(tmp_path: Path) -> None:
    OutputTable(RunFolder(str(tmp_path))).commit_chunks([made(tmp_path, chunk(99))], 1, SCHEMA)
    drivers = [OutputTable(RunFolder(str(tmp_path))) for _ in range(4)]
    start, counted = threading.Barrier(4), []

    def drive(driver: OutputTable) -> None:
        start.wait()
        for first in range(0, 12, 3):
            files = [made(tmp_path, chunk(number)) for number in range(first, first + 3)]
            counted.extend(driver.commit_chunks(files, 1, SCHEMA))

    threads = [threading.Thread(target=drive, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys(tmp_path)) == 2 * 13 and len(counted) == 12


def test_the_commit_of_a_driver_that_was_overtaken_conflicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has compared its chunks with an old version. The library must refuse its commit, which
    it does because both carry one transaction id; it then compares again."""
    slow, quick = OutputTable(RunFolder(str(tmp_path))), OutputTable(RunFolder(str(tmp_path)))
    slow.commit_chunks([made(tmp_path, chunk(0))], 1, SCHEMA)
    commit = DeltaTable.create_write_transaction
    outcomes: list[str] = []

    def overtaken(self: DeltaTable, *arguments: Any, **named: Any) -> None:
        if self is slow._table and not outcomes:
            outcomes.append("overtaken")
            assert quick.commit_chunks([made(tmp_path, chunk(1))], 1, SCHEMA)
            try:
                commit(self, *arguments, **named)
            except CommitFailedError:
                outcomes.append("conflict")
                raise
        commit(self, *arguments, **named)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", overtaken)
    assert slow.commit_chunks([made(tmp_path, chunk(1))], 1, SCHEMA) == []
    assert outcomes == ["overtaken", "conflict"]
    assert keys(tmp_path) == ["0/0/0", "0/0/1", "0/1/0", "0/1/1"]


def test_who_believes_in_an_earlier_operation_is_stopped(tmp_path: Path) -> None:
    late, next_run = OutputTable(RunFolder(str(tmp_path))), OutputTable(RunFolder(str(tmp_path)))
    late.commit_chunks([made(tmp_path, chunk(0))], 1, SCHEMA)
    next_run.begin(2)
    with pytest.raises(TakenOverError, match="another run has gone on"):
        late.commit_chunks([made(tmp_path, chunk(1))], 1, SCHEMA)
    with pytest.raises(TakenOverError):
        late.replace(1, [made(tmp_path, chunk(1))], late.files())
    with pytest.raises(TakenOverError):
        late.begin(1)
    assert keys(tmp_path) == ["0/0/0", "0/0/1"]
    assert (next_run.operation, next_run.completed) == (2, 0)


@pytest.mark.parametrize("is_lost", [True, False], ids=["the answer", "the request"])
def test_a_lost_answer_is_no_second_commit(
    is_lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = OutputTable(RunFolder(str(tmp_path)))
    table.commit_chunks([made(tmp_path, chunk(0))], 1, SCHEMA)
    commit, faults = DeltaTable.create_write_transaction, [OSError("the connection was reset")]

    def faulty(*arguments: Any, **named: Any) -> None:
        if is_lost or not faults:
            commit(*arguments, **named)
        if faults:
            raise faults.pop()

    monkeypatch.setattr(DeltaTable, "create_write_transaction", faulty)
    mine = table.commit_chunks([made(tmp_path, chunk(1))], 1, SCHEMA)
    assert [file.chunk for file in mine] == [chunk(1)] and not faults
    assert len(keys(tmp_path)) == 4


def test_a_store_that_stays_away_ends_the_run_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = OutputTable(RunFolder(str(tmp_path)))
    table.commit_chunks([made(tmp_path, chunk(0))], 1, SCHEMA)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", broken)
    monkeypatch.setattr(table_module, "SECONDS_TO_COMMIT", 0.2)
    with pytest.raises(UserError, match="no route to host; what is made stays there"):
        table.commit_chunks([made(tmp_path, chunk(1))], 1, SCHEMA)


@pytest.mark.parametrize(
    "reason",
    [
        "Generic LocalFileSystem error: No space left on device (os error 28)",
        "Permission denied (os error 13)",
        "AccessDenied: no right to put objects",
    ],
)
def test_a_fault_that_stays_is_raised_at_once(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = OutputTable(RunFolder(str(tmp_path)))
    table.commit_chunks([made(tmp_path, chunk(0))], 1, SCHEMA)
    tries = []

    def refuse(*_: Any, **__: Any) -> None:
        tries.append(reason)
        raise OSError(reason)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", refuse)
    with pytest.raises(UserError, match="what is made stays there") as ended:
        table.commit_chunks([made(tmp_path, chunk(1))], 1, SCHEMA)
    assert len(tries) == 1
    assert ("free some space" in str(ended.value)) == ("No space left" in reason)


def test_a_table_that_cannot_be_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the network was away, then the disk is full."""
    faults = ["connection reset", "\x1b[31m↳\x1b[0m No space left on device\n (os error 28)"]
    create = DeltaTable.create

    def faulty(*arguments: Any, **named: Any) -> DeltaTable:
        if faults:
            raise OSError(faults.pop(0))
        return create(*arguments, **named)

    monkeypatch.setattr(DeltaTable, "create", faulty)
    table = OutputTable(RunFolder(str(tmp_path)))
    with pytest.raises(UserError, match=r": No space left on device \(os error 28\)"):
        table.commit_chunks([made(tmp_path, chunk(0))], 1, SCHEMA)
    assert not faults and not table.exists
    assert len(table.commit_chunks([made(tmp_path, chunk(0))], 1, SCHEMA)) == 1


def test_an_operation_is_completed_once(tmp_path: Path) -> None:
    first, second = OutputTable(RunFolder(str(tmp_path))), OutputTable(RunFolder(str(tmp_path)))
    chunks = [made(tmp_path, chunk(number)) for number in range(3)]
    first.commit_chunks(chunks, 1, SCHEMA)
    second.load()
    joined = dataclasses.replace(made(tmp_path, Chunk(1, 7, 7, 0, 6)))
    first.replace(1, [joined], chunks)
    second.replace(1, [joined], chunks)
    assert len(keys(tmp_path)) == 6 and first.version == OutputTable(first.folder).version
    assert (first.operation, first.completed) == (1, 1)


def test_a_plan_is_carried_out_under_one_number_only(tmp_path: Path) -> None:
    """Operation 3 was given up, so plan 2 goes on as operation 4. Another driver has chosen number
    5 for it, and comes when all is done."""
    driver, late = OutputTable(RunFolder(str(tmp_path))), OutputTable(RunFolder(str(tmp_path)))
    driver.commit_chunks([made(tmp_path, chunk(0))], 1, SCHEMA)
    driver.begin(4, plan=2)
    chunks = [made(tmp_path, chunk(1, operation=2))]
    driver.commit_chunks(chunks, 4, SCHEMA)
    late.load()
    driver.replace(4, [made(tmp_path, Chunk(4, 7, 7, 0, 2))], chunks)
    held = keys(tmp_path)
    with pytest.raises(TakenOverError):
        late.replace(5, [made(tmp_path, Chunk(5, 7, 7, 0, 2))], chunks)
    with pytest.raises(TakenOverError):
        late.commit_chunks([made(tmp_path, chunk(1, operation=2))], 5, SCHEMA)
    with pytest.raises(TakenOverError):
        late.begin(5, plan=2)
    with pytest.raises(TakenOverError):
        late.check_open(2)
    assert keys(tmp_path) == held and driver.operation == 4


def test_a_side_table_that_another_run_has_removed_is_not_waited_for(tmp_path: Path) -> None:
    side = tmp_path / "side"
    side.mkdir()
    table = OutputTable(RunFolder(str(side)))
    table.commit_chunks([made(side, chunk(0))], 1, SCHEMA)
    late = made(side, chunk(1))
    shutil.rmtree(side)
    with pytest.raises(TakenOverError):
        table.commit_chunks([late], 1, SCHEMA)


def test_a_side_table_that_is_removed_as_soon_as_it_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = tmp_path / "side"
    create = OutputTable._create

    def create_and_remove(self: OutputTable, schema: pa.Schema) -> None:
        create(self, schema)
        shutil.rmtree(side)
        self._table = None

    monkeypatch.setattr(OutputTable, "_create", create_and_remove)
    with pytest.raises(TakenOverError):
        OutputTable(RunFolder(str(side))).commit_chunks([made(side, chunk(0))], 1, SCHEMA)


def test_an_overwrite_changes_rows_and_columns_at_once(tmp_path: Path) -> None:
    table, reader = OutputTable(RunFolder(str(tmp_path))), OutputTable(RunFolder(str(tmp_path)))
    table.commit_chunks([made(tmp_path, chunk(0))], 1, SCHEMA)
    wider = pa.schema([*SCHEMA, ("score", pa.float32())])
    new = pa.table({"key": ["new"], "score": [1.0]}, wider)
    pq.write_table(new, tmp_path / "new.parquet")
    before = table.version
    size = (tmp_path / "new.parquet").stat().st_size
    table.replace(2, [table_module.DataFile("new.parquet", size, 1)], (), wider)
    reader.load()
    assert reader.version == before + 1 and keys(tmp_path) == ["new"]
    assert reader.schema().names == ["key", "score"] and reader.completed == 2


@pytest.mark.parametrize("name", ["with space", "ünïcode", "a+b", "50%", "what?#x", "a=b"])
def test_names_of_folders(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    table = OutputTable(RunFolder(str(folder)))
    table.commit_chunks([made(folder, chunk(0))], 1, SCHEMA)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(OutputTable(RunFolder(str(folder))).files()) == 1


def test_places_that_hold_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="percent sign and two digits"):
        OutputTable(RunFolder(str(tmp_path / "a%20b")))
    with pytest.raises(UserError, match="tables cannot be written to https://"):
        OutputTable(RunFolder("https://example.org/folder"))


def test_a_damaged_log_ends_the_run_in_words_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    OutputTable(RunFolder(str(tmp_path))).commit_chunks([made(tmp_path, chunk(0))], 1, SCHEMA)
    (tmp_path / "_delta_log" / f"{1:020}.json").write_text("{nonsense")
    with pytest.raises(UserError, match=r"cannot read the table .*Json error"):
        OutputTable(RunFolder(str(tmp_path)))
    assert "trying again" not in caplog.text
