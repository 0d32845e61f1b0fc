"""Reading tables while a run makes them: each committed row once, and no other row."""

import json
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake.transaction import AddAction
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.bulk.clean_up import clean_up
from raycap.bulk.plan import Chunk
from raycap.bulk.table import ChunkFile, DataFile, OutputTable, TakenOverError, chunk_path
from raycap.errors import UserError
from raycap.evaluation import captions
from raycap.evaluation.captions import read_captions
from raycap.schema import CAPTIONS, SUCCESS
from raycap.sources.huggingface import HuggingFace
from raycap.sources.table import Table
from raycap.storage import RunFolder

EMPTY = {"string": "", "int32": 0, "int64": 0, "float": 0.0, "double": 0.0}


def rows(*keys: str, caption: str = "a dog") -> pa.Table:
    known: dict[str, Any] = {"caption": caption, "status": SUCCESS}
    columns = {
        field.name: pa.array(
            [known.get(field.name, EMPTY.get(str(field.type)))] * len(keys), field.type
        )
        for field in CAPTIONS
    }
    uris = pa.array([f"https://example.org/{key}.jpg" for key in keys])
    return pa.table({**columns, "key": pa.array(keys), "uri": uris}, CAPTIONS)


def write(folder: Path, name: str, table: pa.Table) -> DataFile:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return DataFile(name, path.stat().st_size, len(table))


def chunk(folder: Path, number: int, caption: str = "a dog") -> ChunkFile:
    """Write the file of a chunk, which has two rows."""
    place = Chunk(1, 0, 0, 2 * number, 2 * number + 2)
    keys = [f"{2 * number}", f"{2 * number + 1}"]
    file = write(folder, chunk_path(place), rows(*keys, caption=caption))
    return ChunkFile(file.path, file.size, file.rows, place)


def begun(out: Path, committed: int) -> tuple[Path, OutputTable]:
    """The folder of a run that has committed so many chunks."""
    folder = out / "captions"
    folder.mkdir(parents=True)
    table = OutputTable(RunFolder(str(folder)))
    for number in range(committed):
        table.commit_chunks([chunk(folder, number)], 1, CAPTIONS)
    write(out, "_plan/0001/00000/000000.parquet", rows("of the plan"))
    write(out, "_side/0002/_chunks/x.parquet", rows("of a retry"))
    return folder, table


def keys_of(path: Path) -> list[str]:
    found: list[str] = read_captions(str(path), "t").rows["key"].to_pylist()
    return found


def keys_of_source(path: Path) -> list[str]:
    source = Table(str(path), column="uri", key_column="key")
    return [key for table in source.tables() for key in table["key"].to_pylist()]


@settings(max_examples=8)
@given(made=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=8))
def test_committed_chunks_count_once_whoever_made_them(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[int, bool]]
) -> None:
    """Also if several workers make one chunk, and if a file is written and never committed."""
    out = tmp_path_factory.mktemp("run")
    folder, table = begun(out, 1)
    for number, is_committed in made:
        file = chunk(folder, number)
        if is_committed:
            table.commit_chunks([file], 1, CAPTIONS)
    numbers = {0} | {number for number, is_committed in made if is_committed}
    expected = sorted(str(2 * number + row) for number in numbers for row in (0, 1))
    for path in (folder, out):
        assert sorted(keys_of(path)) == expected
        assert sorted(keys_of_source(path)) == expected


def test_joined_files_replace_the_chunks_that_still_lie_there(tmp_path: Path) -> None:
    folder, table = begun(tmp_path, 2)
    part = write(folder, "part-0001-000000.parquet", rows("0", "1", "2", "3"))
    assert keys_of(folder) == ["0", "1", "2", "3"]
    table.replace(1, [part], table.files())
    assert keys_of(folder) == keys_of(tmp_path) == keys_of_source(tmp_path) == list("0123")
    assert len(list(folder.glob("_chunks/*.parquet"))) == 2


def test_a_retry_or_overwrite_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, table = begun(tmp_path, 2)
    write(tmp_path, "_side/0002/part.parquet", rows("0"))
    side = OutputTable(RunFolder(str(tmp_path / "_side/0002")))
    side.commit_chunks([chunk(tmp_path / "_side/0002", 0)], 2, CAPTIONS)
    part = write(folder, "part-0002-000000.parquet", rows("0", "1", caption="a cat"))
    assert keys_of(tmp_path) == keys_of(folder) == list("0123")
    assert set(read_captions(str(folder), "t").rows["caption"].to_pylist()) == {"a dog"}

    table.replace(2, [part], (), CAPTIONS)
    assert read_captions(str(tmp_path), "t").rows["caption"].to_pylist() == ["a cat"] * 2


def test_a_late_driver_of_a_complete_operation_brings_no_chunk_back(tmp_path: Path) -> None:
    """It was suspended with a finished chunk. Meanwhile another driver made that chunk too and
    joined all, so that no chunk is in the table under its name any more."""
    folder, table = begun(tmp_path, 1)
    late, file = OutputTable(RunFolder(str(folder))), chunk(folder, 1)
    table.commit_chunks([chunk(folder, 1)], 1, CAPTIONS)
    part = write(folder, "part-0001-000000.parquet", rows("0", "1", "2", "3"))
    table.replace(1, [part], table.files())
    with pytest.raises(TakenOverError, match="another run has gone on"):
        late.commit_chunks([file], 1, CAPTIONS)
    assert keys_of(folder) == list("0123")


def test_a_late_run_cleans_up_nothing_of_a_later_operation(tmp_path: Path) -> None:
    """It was suspended after its last commit. Meanwhile another run has begun to append."""
    folder, late = begun(tmp_path, 1)
    unwanted = chunk(folder, 0)
    part = write(folder, "part-0001-000000.parquet", rows("0", "1"))
    late.replace(1, [part], late.files())
    new = Chunk(2, 0, 0, 0, 1)
    made = [write(folder, chunk_path(new), rows(key)) for key in ("2", "3")]
    files = [ChunkFile(each.path, each.size, each.rows, new) for each in made]
    OutputTable(RunFolder(str(folder))).commit_chunks(files[:1], 2, CAPTIONS)
    write(folder, "part-0002-000000.parquet", rows("2"))

    clean_up(RunFolder(str(tmp_path)), late)
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")}
    assert left == {part.path, files[0].path, files[1].path, "part-0002-000000.parquet"}
    assert unwanted.path not in left and keys_of(tmp_path) == ["2", "0", "1"]
    assert (tmp_path / "_side/0002").exists()


def test_several_runs_in_one_folder_are_read_together(tmp_path: Path) -> None:
    begun(tmp_path / "a", 1)
    folder, table = begun(tmp_path / "b", 0)
    table.commit_chunks([chunk(folder, 5)], 1, CAPTIONS)
    chunk(folder, 6)
    write(tmp_path, "c/old.parquet", rows("30"))
    assert sorted(keys_of(tmp_path)) == ["0", "1", "10", "11", "30"]


def test_checkpoints_are_no_rows(tmp_path: Path) -> None:
    folder, _ = begun(tmp_path, 2)
    deltalake.DeltaTable(str(folder)).create_checkpoint()
    assert list(folder.glob("_delta_log/*.parquet"))
    assert keys_of(folder) == keys_of_source(folder) == list("0123")


def test_a_table_without_rows_is_reported(tmp_path: Path) -> None:
    folder, table = begun(tmp_path, 0)
    chunk(folder, 0)
    (folder / "_delta_log").mkdir()
    for _ in range(2):
        with pytest.raises(UserError, match="has no rows yet"):
            read_captions(str(folder), "t")
        deltalake.DeltaTable.create(str(folder), CAPTIONS, mode="ignore")
    table.commit_chunks([chunk(folder, 1)], 1, CAPTIONS)
    assert keys_of(folder) == ["2", "3"]


def test_names_of_files_are_decoded(tmp_path: Path) -> None:
    """As in tables that other programs have written."""
    given = pa.table({"key": ["1", "2"], "caption": ["a", "b"], "of": ["x y", "ä%20"]})
    deltalake.write_deltalake(str(tmp_path / "a b"), given, partition_by=["of"])
    assert sorted(keys_of(tmp_path / "a b")) == ["1", "2"]


def test_pictures_in_a_delta_table_are_a_source(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"", "path": "a.jpg"}])
    deltalake.write_deltalake(str(tmp_path), pa.table({"image": image}))
    old = list(tmp_path.glob("*.parquet"))
    deltalake.write_deltalake(str(tmp_path), pa.table({"image": image}), mode="overwrite")
    source = HuggingFace(str(tmp_path))
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    assert sum(len(table) for table in source.tables()) == 1
    assert old[0].exists()


@pytest.mark.parametrize("name", ["../secret.parquet", "link.parquet", "/{}/secret.parquet"])
def test_a_log_names_nothing_outside_its_table(tmp_path: Path, name: str) -> None:
    """The log of a table from somebody else could ask for any file of this machine."""
    folder, _ = begun(tmp_path / "run", 1)
    secret = write(tmp_path / "run", "secret.parquet", rows("secret"))
    (folder / "link.parquet").symlink_to(tmp_path / "run" / "secret.parquet")
    table = deltalake.DeltaTable(str(folder))
    path = name.format(str(tmp_path / "run").strip("/"))
    statistics = json.dumps({"numRecords": 1})
    action = AddAction(path, secret.size, {}, 0, True, statistics)
    table.create_write_transaction([action], "append", table.schema())
    with pytest.raises(UserError, match="outside of it"):
        read_captions(str(folder), "t")


def test_a_damaged_log_is_reported(tmp_path: Path) -> None:
    folder, _ = begun(tmp_path, 1)
    (folder / "_delta_log/00000000000000000000.json").write_text("{")
    with pytest.raises(UserError, match="cannot read the log"):
        read_captions(str(folder), "t")


def test_rows_that_were_deleted_in_place_are_not_ignored(tmp_path: Path) -> None:
    """Files of a table with deletion vectors hold rows that the table does not have."""
    folder, _ = begun(tmp_path, 1)
    log = folder / "_delta_log"
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["deletionVectors"],
        "writerFeatures": ["deletionVectors"],
    }
    version = len(list(log.glob("*.json")))
    (log / f"{version:020}.json").write_text(json.dumps({"protocol": protocol}))
    with pytest.raises(UserError, match="deletionVectors"):
        read_captions(str(folder), "t")


def test_a_table_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may remove the files of chunks between the listing and the reading of them."""
    folder, table = begun(tmp_path, 2)
    list_files, changes = captions.table_files, iter([True])

    def list_and_join(path: str) -> Any:
        found = list_files(path)
        if next(changes, False):
            part = write(folder, "part-0001-000000.parquet", rows("0", "1", "2", "3"))
            table.replace(1, [part], table.files())
            for each in folder.glob("_chunks/*.parquet"):
                each.unlink()
        return found

    monkeypatch.setattr(captions, "table_files", list_and_join)
    assert keys_of(folder) == list("0123")


def test_a_missing_file_of_a_table_that_stays_is_an_error(tmp_path: Path) -> None:
    folder, table = begun(tmp_path, 2)
    (folder / table.files()[0].path).unlink()
    with pytest.raises(UserError, match="cannot read"):
        read_captions(str(folder), "t")
