"""A folder in S3, on a server of the test's own: listed page by page, whatever its size."""

import pytest
from source_rows import column, read

from raycap.errors import UserError
from raycap.fetch import Fetch, Fetcher
from raycap.sources import Coco, Folder, detect

PAGE = 100  # names


@pytest.fixture(scope="module")
def bucket(s3):  # type: ignore[no-untyped-def]
    s3.mkdir("photos")
    for name in [
        "all/a.jpg",
        "all/b c#%20.PNG",
        "all/.hidden/x.jpg",
        "all/deep/er/c.webp",
        "all/notes.txt",
        "d.jpg",
    ]:
        s3.pipe(f"photos/{name}", name.encode())
    s3.touch("photos/all/")
    s3.pipe({f"photos/many/{number:04d}.jpg": b"x" for number in range(PAGE + 10)})
    return s3


def test_what_is_in_a_bucket(bucket) -> None:  # type: ignore[no-untyped-def]
    table = read(Folder("s3://photos/all"))
    assert table["key"].to_pylist() == ["a.jpg", "b c#%20.PNG", "deep/er/c.webp"]
    assert [bucket.cat(uri).decode() for uri in table["uri"].to_pylist()] == [
        f"all/{key}" for key in table["key"].to_pylist()
    ]
    assert "d.jpg" in column(Folder("s3://photos"), "key")
    assert column(Folder("s3://photos/d.jpg"), "uri") == ["s3://photos/d.jpg"]
    assert detect("s3://photos/all/") == "folder"


def test_the_first_rows_come_with_the_first_page(bucket, monkeypatch) -> None:
    asked = []
    call = bucket.call_s3
    monkeypatch.setattr(
        type(bucket), "call_s3", lambda self, *a, **k: asked.append(a) or call(*a, **k)
    )
    tables = Folder("s3://photos/many").tables()
    assert len(next(tables)) == 64
    assert len(asked) == 1
    assert sum(map(len, tables)) == PAGE + 10 - 64
    assert len(asked) == 2


def test_no_credentials(bucket, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    for file in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(file, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    type(bucket).clear_instance_cache()
    try:
        with pytest.raises(
            UserError, match="cannot reach s3://photos/all: Unable to locate credentials"
        ):
            Folder("s3://photos/all").check()
    finally:
        type(bucket).clear_instance_cache()


def test_what_is_not_in_a_bucket(bucket) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        UserError, match="no such file or folder: s3://photos/al; did you mean s3://photos/all"
    ):
        detect("s3://photos/al")
    with pytest.raises(UserError, match=r"no captions_\*\.json"):
        Coco("s3://photos/all").check()
    with pytest.raises(UserError, match="no such"):
        Folder("s3://other/x").check()


def test_names_are_taken_as_they_are_and_other_buckets_are_refused(bucket) -> None:
    names = [
        "a::b.jpg",
        "simplecache::s3::c.jpg",
        "a#b.jpg",
        "a?b=1.jpg",
        "100%.jpg",
        "file:b.jpg",
        "[a]*.jpg",
    ]
    bucket.pipe({f"photos/odd/{name}": name.encode() for name in names})
    bucket.mkdir("other")
    bucket.pipe("other/a.jpg", b"secret")
    source = Folder("s3://photos/odd")
    with Fetcher(Fetch(), source.trust) as fetcher:
        keys, uris = column(source, "key"), column(source, "uri")
        assert sorted(keys) == sorted(names)
        assert [answer.data.decode() for answer in fetcher.fetch_all(uris)] == keys
        for uri in ("s3://other/a.jpg", "s3a://other/a.jpg", "simplecache::s3://other/a.jpg"):
            answer = fetcher.fetch(uri)
            assert (
                answer.data == b""
                and answer.error.startswith("refused: ")
                and "--fetch.trust" in answer.error
            )
    with Fetcher(Fetch(trust=("s3://other",)), source.trust) as fetcher:
        assert fetcher.fetch("s3://other/a.jpg").data == b"secret"
