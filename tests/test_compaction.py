"""The end of an operation: chunks are joined in the order of the plan, and only when all of them
are there; rows that have succeeded stay; what may still be committed is not removed."""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_jobs import NoPictures, captions_job

from raycap.bulk.clean_up import clean_up
from raycap.bulk.counts import count_rows
from raycap.bulk.finish import join_part, parts_of, replace_retried
from raycap.bulk.machines import Machines
from raycap.bulk.options import BulkOptions
from raycap.bulk.plan import Chunk, Plan, shard_name, write_plan
from raycap.bulk.run import run_job
from raycap.bulk.table import ChunkFile, DataFile, OutputTable, TakenOverError, chunk_path
from raycap.bulk.work import ROWS, FileLayout, write_rows
from raycap.bulk.worker_pool import LocalPool
from raycap.schema import CAPTIONS, FAILED_TO_FETCH, SUCCESS
from raycap.sources.manifest import Row, tables
from raycap.storage import RunFolder

pytestmark = pytest.mark.usefixtures("no_ray")

LAYOUT = FileLayout(5, CAPTIONS, (), {})


def captions(said: dict[str, str]) -> pa.Table:
    """Rows of these keys; one without a caption has failed."""
    rows = []
    for key, caption in said.items():
        row: dict[str, Any] = {"key": key, "caption": caption, "uri": "", "sha256": ""}
        row |= {"status": SUCCESS if caption else FAILED_TO_FETCH, "error_message": ""}
        rows.append({**row, "alternatives": [], "score": None, "width": 1, "height": 1})
    return pa.Table.from_pylist(rows, CAPTIONS)


def write(folder: RunFolder, path: str, said: dict[str, str], places: Any = ()) -> DataFile:
    rows = captions(said)
    layout = FileLayout(5, CAPTIONS, (), {ROWS: json.dumps(places)})
    return DataFile(*write_rows(folder, path, rows, layout, count_rows(rows)))


def chunk_file(folder: RunFolder, chunk: Chunk, model: str = "A") -> ChunkFile:
    said = {f"{chunk.shard}-{row}": model for row in range(chunk.start, chunk.stop)}
    file = write(folder, chunk_path(chunk), said)
    return ChunkFile(file.path, file.size, file.rows, chunk)


def test_parts_have_the_order_of_the_plan(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    chunks = [Chunk(1, unit, 10 * unit, start, start + 3) for unit in range(3) for start in (0, 3)]
    planned = [
        f"{chunk.shard}-{row}" for chunk in chunks for row in range(chunk.start, chunk.stop)
    ]
    random.Random(0).shuffle(chunks)
    files = [chunk_file(folder, chunk) for chunk in chunks]
    pieces = list(parts_of(files, 5))
    parts = [
        join_part(folder, folder, f"{n}.parquet", some, LAYOUT) for n, some in enumerate(pieces)
    ]
    assert [part.rows for part in parts] == [5, 5, 5, 3]
    read = [pq.read_table(tmp_path / part.path)["key"].to_pylist() for part in parts]
    assert [key for keys in read for key in keys] == planned


def test_a_row_that_has_succeeded_is_not_replaced_by_a_retry(tmp_path: Path) -> None:
    """An interrupted retry made it too, before another run succeeded."""
    table, side = RunFolder(str(tmp_path / "table")), RunFolder(str(tmp_path / "side"))
    write(table, "old.parquet", {"a": "old", "b": "", "c": "", "d": "old"}, [[1, 0, 0, 0, 4]])
    made = [
        write(side, f"{number}.parquet", said).path
        for number, said in enumerate(({"c": "new", "d": "new"}, {"b": ""}))
    ]
    file = replace_retried(table, "old.parquet", side, made, "new.parquet", LAYOUT)
    rows = pq.read_table(tmp_path / "table" / file.path).to_pylist()
    assert {row["key"]: row["caption"] for row in rows} == {
        "a": "old",
        "b": "",
        "c": "new",
        "d": "old",
    }


def test_a_late_worker_brings_nothing_into_a_table_that_is_complete(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    driver, late = OutputTable(folder), OutputTable(folder)
    chunk = Chunk(1, 0, 0, 0, 4)
    driver.commit_chunks([chunk_file(folder, chunk)], 1, CAPTIONS)
    orphan = chunk_file(folder, chunk, "B")
    late.load()
    [held] = driver.files()
    [pieces] = parts_of([held], 5)
    driver.replace(
        1, [join_part(folder, folder, "part-0001-000000.parquet", pieces, LAYOUT)], [held]
    )
    with pytest.raises(TakenOverError):
        late.commit_chunks([orphan], 1, CAPTIONS)
    assert [file.path for file in OutputTable(folder).files()] == ["part-0001-000000.parquet"]


def test_files_that_may_still_be_committed_stay(tmp_path: Path) -> None:
    """Another run has begun an operation while this one cleaned up."""
    out = RunFolder(str(tmp_path))
    folder = out / "captions"
    table = OutputTable(folder)
    table.commit_chunks([chunk_file(folder, Chunk(1, 0, 0, 0, 4))], 1, CAPTIONS)
    [held] = table.files()
    part = write(folder, "part-0001-000000.parquet", {"a": "A"})
    table.replace(1, [part], [held])
    old = chunk_file(folder, Chunk(1, 0, 1, 0, 4))
    table.begin(2)
    new = chunk_file(folder, Chunk(2, 0, 0, 0, 4))
    new_part = write(folder, "part-0002-000000.parquet", {"b": "A"})
    for number in (1, 2):
        write_plan(out, Plan(number, "first" if number == 1 else "append", {}, 4, 4))
    out.write(shard_name(1, 0, 0), b"")
    clean_up(out, table)
    left = {path.name for path in (tmp_path / "captions").rglob("*.parquet")}
    names = {Path(file.path).name for file in (new, new_part, part)}
    assert left == names and Path(old.path).name not in left
    assert out.folders("_plan") == ["0001", "0002"]


AT_FIRST, IN_ALL = 64, 70


@dataclass(frozen=True)
class SlowSource(NoPictures):
    """Its last rows are listed when the first ones are in the table."""

    out: Path

    def tables(self, notes: object = None) -> Iterator[pa.Table]:
        yield from tables((Row(str(key), "") for key in range(AT_FIRST)), None)
        end = time.monotonic() + 60
        while self._committed_rows() < AT_FIRST and time.monotonic() < end:
            time.sleep(0.1)
        yield from tables((Row(str(key), "") for key in range(AT_FIRST, IN_ALL)), None)

    def _committed_rows(self) -> int:
        table = OutputTable(RunFolder(str(self.out / "captions")))
        return sum(file.rows for file in table.files())


def open_model(options: BulkOptions, threads: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: captions(dict.fromkeys(table["key"].to_pylist(), "A"))


def test_an_operation_ends_when_the_source_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # without Ray, though the number of rows is not known
        Machines,
        "worker_pool",
        lambda self, job, order, events, rows: LocalPool(
            job.options, order, events, job.runs_model
        ),
    )
    out = tmp_path / "out"
    options = BulkOptions(out=str(out), batch=1, part_rows=100)
    assert run_job(captions_job(SlowSource(out), options, "A", open_model), {}) == 0
    keys = pq.read_table(out / "captions")["key"].to_pylist()
    assert sorted(map(int, keys)) == list(range(IN_ALL))
