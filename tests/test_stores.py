"""Names of files and folders are literal: on a disk, in a store with real folders, in a bucket."""

from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from raycap.errors import UserError
from raycap.storage import RunFolder, open_uri
from raycap.storage.filesystem import filesystem_of, remove

# Each with a neighbour that the name would match as a pattern, or mean as a URI.
NAMES = [
    ("run[12]", "run1"),
    ("run*", "run-of-another"),
    ("run?", "runs"),
    ("{a,b}", "a"),
    ("a#b", "a"),
    ("a%41", "aA"),
    ("a b", "a"),
    ("a::b", "a"),
    ("**", "anything"),
    ("[!a]", "b"),
]


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    s3.mkdir("literal")
    return "s3://literal"


def in_folder(folder: RunFolder, neighbour: RunFolder) -> None:
    """Every operation on `folder` does its work there, and `neighbour` stays as it is."""
    neighbour.write("captions/part", b"of the neighbour")
    neighbour.write_json("facts.json", {"neighbour": True})
    assert not folder.exists() and folder.names("captions") == []
    folder.stage("_staged/run/part[1]*", pa.py_buffer(b"one"))  # as Parquet files come
    folder.rename("_staged/run/part[1]*", "captions/part[1]*")
    folder.write("captions/part1x", b"two")
    folder.write_json("facts.json", {"mine": 1})
    assert folder.names("captions") == ["captions/part1x", "captions/part[1]*"]
    assert folder.read("captions/part[1]*") == b"one" and folder.read_json("facts.json") == {
        "mine": 1
    }
    with folder.open("captions/part[1]*") as file:
        assert file.read() == b"one"
    folder.remove("captions/part[1]*")
    assert folder.names("captions") == ["captions/part1x"]
    folder.remove("captions")
    folder.remove("captions")
    assert not folder.exists("captions") and folder.exists("facts.json")
    folder.remove("")
    assert not folder.exists("facts.json")
    assert (
        neighbour.names("captions") == ["captions/part"]
        and neighbour.read("captions/part") is not None
    )
    assert neighbour.read_json("facts.json") == {"neighbour": True}


@pytest.mark.parametrize("name, neighbour", NAMES)
def test_a_local_folder_is_not_a_pattern(name: str, neighbour: str, tmp_path: Path) -> None:
    in_folder(RunFolder(str(tmp_path / name)), RunFolder(str(tmp_path / neighbour)))
    assert [path.name for path in tmp_path.iterdir()] == [neighbour]


@pytest.mark.parametrize("name, neighbour", NAMES)
def test_a_folder_of_a_bucket_is_not_a_pattern(name: str, neighbour: str, bucket: str) -> None:
    in_folder(RunFolder(f"{bucket}/{name}"), RunFolder(f"{bucket}/{neighbour}"))
    fsspec.filesystem("s3").invalidate_cache()
    fsspec.filesystem("s3").rm(f"literal/{neighbour}", recursive=True)


def test_a_version_of_an_object_is_no_folder() -> None:
    with pytest.raises(UserError, match=r"leave out \?versionId="):
        RunFolder("s3://bucket/run?versionId=1")


@pytest.mark.parametrize("name, neighbour", [pair for pair in NAMES if "::" not in pair[0]])
def test_a_store_with_real_folders(name: str, neighbour: str) -> None:
    """memory:// has folders that stay when their files are gone (and reads '::' as a chain)."""
    memory: Any = fsspec.filesystem("memory")
    for folder in (name, neighbour):
        memory.pipe_file(f"/literal/{folder}/deep/file", folder.encode())
    filesystem, path = filesystem_of(f"memory://literal/{name}")
    remove(filesystem, path)
    assert not memory.exists(f"/literal/{name}")
    with open_uri(f"memory://literal/{neighbour}/deep/file") as file:
        assert file.read() == neighbour.encode()
    remove(memory, "/literal")


def test_a_link_to_a_folder_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "below").mkdir()
    (tmp_path / "out" / "below" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "kept")
    RunFolder(str(tmp_path / "out")).remove("link")
    RunFolder(str(tmp_path / "out")).remove("below")
    assert not list((tmp_path / "out").iterdir()) and (tmp_path / "kept" / "file").exists()


def test_a_chain_of_protocols_is_still_one() -> None:
    filesystem, path = filesystem_of("simplecache::memory://a/b")
    assert type(filesystem).__name__ == "SimpleCacheFileSystem" and path == "/a/b"
