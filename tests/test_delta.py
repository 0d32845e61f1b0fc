"""What the Delta library promises, and what it does not: a table job with transactions would rest
on this.

Writers are processes of their own. Each loads the table, writes a data file, waits until it may
go on, and commits that file with an application transaction id.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

deltalake = pytest.importorskip("deltalake", reason="needs deltalake: pip install 'raycap[dev]'")

SCHEMA = pa.schema([("key", pa.string())])
WRITER = """
import json, os, sys, time, uuid
import pyarrow as pa, pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

uri, key, operation, folder = sys.argv[1:5]
options = json.loads(sys.argv[5])
table = DeltaTable(uri, storage_options=options)
data = pa.table({"key": [key]})
name = f"{key}-{uuid.uuid4().hex}.parquet"
if uri.startswith("s3://"):
    import s3fs
    system = s3fs.S3FileSystem(endpoint_url=options["aws_endpoint_url"])
    with system.open(f"{uri[5:]}/{name}", "wb") as file:
        pq.write_table(data, file)
    size = system.size(f"{uri[5:]}/{name}")
else:
    pq.write_table(data, f"{uri}/{name}")
    size = os.path.getsize(f"{uri}/{name}")
open(f"{folder}/{key}.ready", "w").close()
while not os.path.exists(f"{folder}/go"):
    time.sleep(0.01)
stats = json.dumps({"numRecords": 1})
action = AddAction(name, size, {}, int(time.time() * 1000), True, stats)
properties = CommitProperties(
    app_transactions=[Transaction("raycap", int(operation))], max_commit_retries=0
)
try:
    table.create_write_transaction(
        [action], "append", table.schema(), commit_properties=properties
    )
    print("committed")
except CommitFailedError:
    print("conflict")
"""


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """The address of a new table, and how its store is reached."""
    if request.param == "s3":
        request.getfixturevalue("s3").makedirs("delta", exist_ok=True)
        uri, address = f"s3://delta/{tmp_path.name}", request.getfixturevalue("s3_server")
        options = {"aws_endpoint_url": address, "aws_allow_http": "true"}
    else:
        uri, options = str(tmp_path / "table"), {}
    deltalake.DeltaTable.create(uri, SCHEMA, storage_options=options)
    return uri, options


def keys(place: tuple[str, dict[str, str]]) -> list[str]:
    table = deltalake.DeltaTable(place[0], storage_options=place[1])
    found: list[str] = sorted(table.to_pyarrow_table()["key"].to_pylist())
    return found


def start(
    place: tuple[str, dict[str, str]], folder: Path, *writers: tuple[str, int]
) -> list["subprocess.Popen[str]"]:
    """Start writers (key, operation) and wait until each has written its data file."""
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                WRITER,
                place[0],
                key,
                str(operation),
                str(folder),
                json.dumps(place[1]),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for key, operation in writers
    ]
    for key, _ in writers:
        while not (folder / f"{key}.ready").exists():
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
    return processes


def outcomes(processes: list["subprocess.Popen[str]"], folder: Path) -> list[str]:
    """Let the writers commit; what each of them prints."""
    (folder / "go").touch()
    return [process.communicate(timeout=120)[0].strip() for process in processes]


def test_of_writers_that_loaded_the_same_version_one_commits(
    place: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    writers = start(place, tmp_path, ("a", 1), ("b", 1), ("c", 1), ("d", 1))
    found = outcomes(writers, tmp_path)
    assert sorted(found) == ["committed", "conflict", "conflict", "conflict"]
    [winner] = keys(place)
    assert found["abcd".index(winner)] == "committed", "nothing of the others is visible"
    table = deltalake.DeltaTable(place[0], storage_options=place[1])
    assert table.transaction_version("raycap") == 1


def test_a_writer_that_is_killed_before_its_commit_leaves_nothing_that_is_seen(
    place: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    [killed] = start(place, tmp_path, ("a", 1))
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert keys(place) == []
    (tmp_path / "second").mkdir()
    assert outcomes(start(place, tmp_path / "second", ("b", 1)), tmp_path / "second") == [
        "committed"
    ]
    assert keys(place) == ["b"]


def test_a_writer_that_loads_late_is_not_stopped_by_the_library(
    place: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    """So a job has to compare, on the version that it loaded, what the table has already."""
    for folder, key in (("first", "a"), ("second", "a")):
        (tmp_path / folder).mkdir()
        writers = start(place, tmp_path / folder, (key, 1))
        assert outcomes(writers, tmp_path / folder) == ["committed"]
    assert keys(place) == ["a", "a"], "doubled, because nothing was compared"


def test_a_new_operation_is_seen_by_the_writers_of_the_old_one(
    place: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    """An empty commit raises the transaction version. Whoever loaded before it cannot commit."""
    writers = start(place, tmp_path, ("a", 1))
    table = deltalake.DeltaTable(place[0], storage_options=place[1])
    fence = deltalake.CommitProperties(
        app_transactions=[deltalake.Transaction("raycap", 2)], max_commit_retries=0
    )
    table.create_write_transaction([], "append", table.schema(), commit_properties=fence)
    assert outcomes(writers, tmp_path) == ["conflict"]
    assert keys(place) == []
    table = deltalake.DeltaTable(place[0], storage_options=place[1])
    assert table.transaction_version("raycap") == 2


def test_files_are_replaced_in_one_commit(
    place: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    """As --retry, --overwrite and compaction need it: readers see the old files or the new one."""
    for key in ("a", "b"):
        (tmp_path / key).mkdir()
        assert outcomes(start(place, tmp_path / key, (key, 1)), tmp_path / key) == ["committed"]
    table = deltalake.DeltaTable(place[0], storage_options=place[1])
    files = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    now = int(time.time() * 1000)
    removals = [
        deltalake.transaction.RemoveAction(file["path"], True, now, file["size_bytes"])
        for file in files
    ]
    kept = next(file for file in files if file["path"].startswith("a-"))
    # The new file has the old one's content under another name.
    if place[0].startswith("s3://"):
        import s3fs

        system = s3fs.S3FileSystem(endpoint_url=place[1]["aws_endpoint_url"])
        system.copy(f"{place[0][5:]}/{kept['path']}", f"{place[0][5:]}/new.parquet")
    else:
        (Path(place[0]) / "new.parquet").write_bytes((Path(place[0]) / kept["path"]).read_bytes())
    added = deltalake.transaction.AddAction(
        "new.parquet", kept["size_bytes"], {}, now, True, '{"numRecords": 1}'
    )
    before = table.version()
    table.create_write_transaction([added, *removals], "append", table.schema())
    table = deltalake.DeltaTable(place[0], storage_options=place[1])
    assert table.version() == before + 1 and keys(place) == ["a"]
