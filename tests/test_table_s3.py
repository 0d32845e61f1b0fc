"""The output table in a bucket: its commits, its plans, and stores that cannot keep runs apart."""

import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycap.bulk.plan import Chunk
from raycap.bulk.table import ChunkFile, OutputTable, TakenOverError, chunk_path
from raycap.errors import UserError
from raycap.sources import Folder, Notes
from raycap.storage import RunFolder

SCHEMA = pa.schema([("key", pa.string())])


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    s3.mkdir("tables")
    return "s3://tables"


def made(folder: RunFolder, number: int) -> ChunkFile:
    chunk = Chunk(1, 0, number, 0, 2)
    content = pa.BufferOutputStream()
    pq.write_table(pa.table({"key": [f"{number}a", f"{number}b"]}, SCHEMA), content)
    path = chunk_path(chunk)
    folder.write(path, content.getvalue())
    return ChunkFile(path, content.getvalue().size, 2, chunk)


def keys(folder: RunFolder) -> list[str]:
    files = OutputTable(folder).files()
    read = [folder.reading(file.path, pq.read_table) for file in files]
    return sorted(key for table in read for key in table["key"].to_pylist())


def test_drivers_that_commit_at_the_same_moment(bucket: str) -> None:
    folder = RunFolder(f"{bucket}/race/captions")
    drivers = [OutputTable(folder) for _ in range(3)]
    start, counted = threading.Barrier(3), []

    def drive(driver: OutputTable) -> None:
        start.wait()
        for number in range(4):
            counted.extend(driver.commit_chunks([made(folder, number)], 1, SCHEMA))

    threads = [threading.Thread(target=drive, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys(folder) == [f"{number}{letter}" for number in range(4) for letter in "ab"]
    assert len(counted) == 4, "each chunk is counted by one driver"
    drivers[0].begin(2)
    with pytest.raises(TakenOverError):
        drivers[1].commit_chunks([made(folder, 9)], 1, SCHEMA)


def test_a_file_is_created_once(bucket: str) -> None:
    folder = RunFolder(f"{bucket}/plans")
    folder.check_creates()
    assert folder.create("_plan/0001/plan.json", b"one")
    assert not folder.create("_plan/0001/plan.json", b"two")
    assert folder.create("_plan/0001/plan.json", b"one"), "an answer may have been lost"
    assert folder.read("_plan/0001/plan.json") == b"one"
    assert folder.folders("_plan") == ["0001"] and not folder.names("", hidden=True)


def test_a_store_that_replaces_files_is_refused(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As stores with an interface like that of S3 do that do not know If-None-Match."""
    folder = RunFolder(f"{bucket}/old-store")
    store = folder._filesystem
    pipe = store.pipe_file
    monkeypatch.setattr(store, "pipe_file", lambda path, data, mode="": pipe(path, data))
    with pytest.raises(UserError, match="cannot write a file on the condition"):
        folder.check_creates()
    assert not folder.names("", hidden=True)


def test_a_folder_of_a_bucket_is_listed_in_parts(bucket: str) -> None:
    folder = RunFolder(f"{bucket}/pictures")
    names = ["top.jpg", "a/1.jpg", "a/deep/2.png", "b/3.jpg", ".hidden/4.jpg", "b/.5.jpg"]
    for name in names:
        folder.write(name, b"")
    source = Folder(f"{bucket}/pictures")
    assert source.units() == ("", "a/", "b/")
    parts = [
        key
        for unit in source.units()
        for table in source.tables_of_unit(unit, Notes())
        for key in table["key"].to_pylist()
    ]
    whole = [key for table in source.tables() for key in table["key"].to_pylist()]
    assert sorted(parts) == sorted(whole) == sorted(names[:4])


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (2, 5), (0, 99), (3, 99), (None, None)])
def test_a_part_of_a_file_is_read(start: int | None, stop: int | None, bucket: str) -> None:
    """Clients of stores have other arguments between the path and the range."""
    folder = RunFolder(f"{bucket}/ranges")
    folder.write("file", b"0123456789")
    assert folder.read("file", start, stop) == b"0123456789"[start:stop]
