"""Odd names are only names, and strings inside files open nothing outside of their source."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from server import Server, serving
from source_rows import write

from raycap.errors import UserError
from raycap.fetch import Fetch, Fetcher, Trust
from raycap.fetch.errors import FetchError
from raycap.fetch.trust import PROGRAM
from raycap.sources import Coco, Flickr, Folder, HuggingFace, Karpathy, Source, Table, Urls
from raycap.storage import RunFolder
from raycap.storage.filesystem import filesystem_of
from raycap.uris import links_of, local_path, name_of, scheme_of

SECRET = b"not for you"

ODD_NAMES = [
    "file:b.jpg",
    "profile:7.jpg",
    "d/file:b.jpg",
    "d/FILE:b.jpg",
    "local:b.jpg",
    "http:b.jpg",
    "d/http:/b.jpg",
    "s3:/bucket/b.jpg",
    "data:b.jpg",
    "a::b.jpg",
    "simplecache::b.jpg",
    "zip::a::b.jpg",
    "d/zip:/a.jpg::b.jpg",
    "a#1.jpg",
    "a?b=1.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "sp ace.jpg",
    "quote's \".jpg",
    "back\\slash.jpg",
    "[ab].jpg",
    "{a,b}.jpg",
    "*.jpg",
    "~b.jpg",
    "$HOME.jpg",
    "@b.jpg",
    "-b.jpg",
]
# A list or a table cannot hold these as they are: it has a row for each line, and strips blanks.
ODDER_NAMES = ["new\nline.jpg", "tab\t.jpg", " blank .jpg", "\x1b[31m.jpg"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of pictures whose bytes are their names, and a secret beside it."""
    for name in [*ODD_NAMES, *ODDER_NAMES]:
        write(tmp_path / "root" / name, name)
    write(tmp_path / "secret.jpg", SECRET)
    write(tmp_path / "root2" / "secret.jpg", SECRET)
    return tmp_path / "root"


def fetched(source: Source, fetch: Fetch | None = None) -> dict[str, tuple[bytes, str]]:
    """What each row of a source gives: bytes or a reason, by key."""
    found = {}
    with Fetcher(fetch or Fetch(retries=0, deadline=5), source.trust) as fetcher:
        for table in source.tables():
            keys, uris = table["key"].to_pylist(), table["uri"].to_pylist()
            for key, answer in zip(keys, fetcher.fetch_all(uris), strict=True):
                found[key] = (answer.data, answer.error)
    return found


# Names


def test_a_folder_reads_every_name(root: Path) -> None:
    found = fetched(Folder(str(root)))
    assert found == {name: (name.encode(), "") for name in [*ODD_NAMES, *ODDER_NAMES]}


@pytest.mark.parametrize("name", [*ODD_NAMES, *ODDER_NAMES])
def test_one_picture_of_any_name_is_read(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [data for data, _ in fetched(Folder(str(root / name))).values()] == [name.encode()]
    monkeypatch.chdir(root)
    assert [data for data, _ in fetched(Folder(f"./{name}")).values()] == [name.encode()]


@pytest.mark.parametrize("dots", ["", "./"])
def test_lists_and_tables_read_every_name_below_their_folder(root: Path, dots: str) -> None:
    names = [dots + name for name in ODD_NAMES]
    content = {name: (name.removeprefix("./").encode(), "") for name in names}
    lines = write(root / "list.txt", "".join(f"{name}\n" for name in names))
    assert fetched(Urls(str(lines), local=True)) == content
    rows = write(root / "t.jsonl", "".join(json.dumps({"path": name}) + "\n" for name in names))
    assert fetched(Table(str(rows))) == content
    pq.write_table(pa.table({"file_name": names}), root / "t.parquet")
    assert fetched(Table(str(root / "t.parquet"))) == content
    metadata = write(
        root / "metadata.jsonl", "".join(json.dumps({"file_name": name}) + "\n" for name in names)
    )
    assert fetched(HuggingFace(str(metadata))) == content


def test_a_path_that_begins_like_a_url_is_one_behind_dots(root: Path) -> None:
    write(root / "http:" / "b.jpg", "picture")
    path = write(root / "list.txt", "./http://b.jpg\n")
    assert fetched(Urls(str(path), local=True)) == {"./http://b.jpg": (b"picture", "")}


def test_annotations_read_every_name(root: Path) -> None:
    images = [{"id": number, "file_name": name} for number, name in enumerate(ODD_NAMES)]
    coco = write(root / "captions_val.json", json.dumps({"images": images, "annotations": []}))
    assert fetched(Coco(str(coco))) == {name: (name.encode(), "") for name in ODD_NAMES}
    sentences = [{"raw": "a dog"}]
    pictures = [{"filename": name, "split": "val", "sentences": sentences} for name in ODD_NAMES]
    karpathy = write(root / "dataset_x.json", json.dumps({"images": pictures}))
    assert fetched(Karpathy(str(karpathy))) == {name: (name.encode(), "") for name in ODD_NAMES}


@pytest.mark.parametrize(
    "name", [name for name in [*ODD_NAMES, *ODDER_NAMES] if not name.startswith("~")]
)
def test_folders_of_runs_have_any_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (str(tmp_path / "absolute" / name), name):
        folder = RunFolder(given)
        folder.write("a/b.txt", b"1")
        assert Path(given, "a", "b.txt").read_bytes() == b"1" == folder.read("a/b.txt")
        assert folder.names("a") == ["a/b.txt"] and folder.is_local


@pytest.mark.parametrize(
    ("text", "scheme", "path", "name"),
    [
        ("file:///d/a%20b.jpg", "file", "/d/a b.jpg", "a b.jpg"),
        ("FILE:/d/a.jpg", "file", "/d/a.jpg", "a.jpg"),
        ("file://localhost/d/file:a.jpg", "file", "/d/file:a.jpg", "file:a.jpg"),
        ("file://localhost.jpg", "file", "localhost.jpg", "localhost.jpg"),
        ("/d/file:///a.jpg", "", "/d/file:///a.jpg", "a.jpg"),
        ("C://pictures/a.jpg", "", "C://pictures/a.jpg", "a.jpg"),
        ("/d/a#b?c.jpg", "", "/d/a#b?c.jpg", "a#b?c.jpg"),
        ("https://h/d/a%20b.jpg?size=1#x.png", "https", None, "a b.jpg"),
        ("http://[", "http", None, ""),
        ("S3://bucket/a#b?c::d.jpg", "s3", None, "a#b?c::d.jpg"),
        ("simplecache::s3://bucket/a.jpg", "simplecache", None, "a.jpg"),
        ("zip://a.jpg::/d/b.zip", "zip", None, "a.jpg"),
        ("tar://c/a.jpg::s3://d/b.tar", "tar", None, "a.jpg"),
        ("data:image/png;base64,AA", "data", None, "png;base64,AA"),
    ],
)
def test_only_the_beginning_can_be_a_scheme(
    text: str, scheme: str, path: str | None, name: str
) -> None:
    assert (scheme_of(text), local_path(text), name_of(text)) == (scheme, path, name)


def test_names_in_a_store_are_taken_as_they_are() -> None:
    store = fsspec.filesystem("memory")
    names = [
        "a#b.jpg",
        "a?b.jpg",
        "100%.jpg",
        "a%20b.jpg",
        "file:b.jpg",
        "x/profile:c.jpg",
        "[a]*.jpg",
    ]
    store.pipe({f"/names/{name}": name.encode() for name in names})
    try:
        assert fetched(Folder("memory://names")) == {name: (name.encode(), "") for name in names}
        assert [filesystem_of(f"memory://names/{name}")[1] for name in names] == [
            f"/names/{name}" for name in names
        ]
    finally:
        store.rm("/names", recursive=True)


# Trust


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving({"/secret.jpg": SECRET, "/secret.zip": SECRET}) as running:
        yield running


def strings(root: Path, server: Server) -> list[str]:
    """All ways to name something outside of the root, or on this machine's own network."""
    secret, url = root.parent / "secret.jpg", server.url("/secret.jpg")
    (root / "link.jpg").symlink_to(secret)
    (root / "folder").symlink_to(root.parent)
    return [
        url,
        url.replace("127.0.0.1", "localhost"),
        url.replace("http:", "HTTP:"),
        f"simplecache::{url}",
        f"filecache::simplecache::{url}",
        f"blockcache::{url}",
        f"cached::{url}",
        f"dir::{url}",
        f"zip://secret.jpg::{server.url('/secret.zip')}",
        f"zip://secret.jpg::simplecache::{server.url('/secret.zip')}",
        f"tar://secret.jpg::{server.url('/secret.zip')}",
        f"reference://secret.jpg::{url}",
        f"reference::{url}",
        f"webhdfs://{url.partition('//')[2]}",
        f"ftp://{url.partition('//')[2]}",
        f"generic://{url}",
        f"simplecache::file://{secret}",
        f"simplecache::{secret}",
        f"simplecache://{secret}",
        f"zip://x.jpg::{secret}",
        f"dir://{secret}",
        str(secret),
        f"file://{secret}",
        f"file:{secret}",
        f"FILE://localhost{secret}",
        f"local://{secret}",
        f"file://{root}/../secret.jpg",
        f"file://{root}/%2e%2e/secret.jpg",
        f"{root}/../secret.jpg",
        f"{root}2/secret.jpg",
        "../secret.jpg",
        "./../secret.jpg",
        "d/../../secret.jpg",
        "link.jpg",
        "folder/secret.jpg",
        f"{root}/link.jpg",
        "memory://secret.jpg",
        "memory:///secret.jpg",
        "s3://other/secret.jpg",
        "data:image/png;base64,AAAA",
        "/dev/stdin",
        "/proc/self/environ",
        "",
    ]


def _jsonl(column: str) -> Callable[[Path, list[str]], Source]:
    def source(root: Path, names: list[str]) -> Source:
        return Table(
            str(
                write(
                    root / "t.jsonl", "".join(json.dumps({column: name}) + "\n" for name in names)
                )
            )
        )

    return source


def _parquet(root: Path, names: list[str]) -> Source:
    pq.write_table(pa.table({"image_path": names}), root / "t.parquet")
    return Table(str(root / "t.parquet"))


def _list(local: bool) -> Callable[[Path, list[str]], Source]:
    return lambda root, names: Urls(str(write(root / "list.txt", "\n".join(names))), local=local)


def _coco(root: Path, names: list[str]) -> Source:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    return Coco(
        str(write(root / "captions_val.json", json.dumps({"images": images, "annotations": []})))
    )


def _karpathy(root: Path, names: list[str]) -> Source:
    images = [{"filename": name, "split": "val", "sentences": [{"raw": "x"}]} for name in names]
    return Karpathy(str(write(root / "dataset_x.json", json.dumps({"images": images}))))


def _karpathy_folder(root: Path, names: list[str]) -> Source:
    split = {"split": "val", "sentences": [{"raw": "x"}]}
    images = [
        {"filename": "secret.jpg", "filepath": name.removesuffix("/secret.jpg"), **split}
        for name in names
    ]
    images[0] = {"filename": names[0], "filepath": "", **split}
    return Karpathy(str(write(root / "dataset_x.json", json.dumps({"images": images}))))


def _flickr(root: Path, names: list[str]) -> Source:
    return Flickr(
        str(write(root / "Flickr8k.token.txt", "".join(f"{name}#0\ta dog\n" for name in names)))
    )


def _metadata(root: Path, names: list[str]) -> Source:
    write(
        root / "metadata.jsonl", "".join(json.dumps({"file_name": name}) + "\n" for name in names)
    )
    return HuggingFace(str(root))


def _embedded(root: Path, names: list[str]) -> Source:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": name} for name in names], kind)
    pq.write_table(pa.table({"image": images}), root / "data.parquet")
    return HuggingFace(str(root))


SOURCES = {
    "list": _list(False),
    "local list": _list(True),
    "table of urls": _jsonl("url"),
    "table of paths": _jsonl("path"),
    "table of file names": _jsonl("file_name"),
    "parquet": _parquet,
    "coco": _coco,
    "karpathy": _karpathy,
    "karpathy's folders": _karpathy_folder,
    "flickr": _flickr,
    "metadata": _metadata,
    "embedded": _embedded,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_no_string_in_a_file_leads_out(kind: str, root: Path, server: Server) -> None:
    server.asked.clear()
    fsspec.filesystem("memory").pipe("/secret.jpg", SECRET)
    answered = 0
    try:
        for string in strings(root, server):
            write(root / "good.jpg")
            try:
                found = fetched(SOURCES[kind](root, ["good.jpg", string]))
            except UserError:  # of some kinds of source as a whole
                continue
            answered += 1
            assert all(SECRET not in data for data, _ in found.values()), string
            # The row that names the string, if it is one, has the reason why it was not read.
            assert all(data or error for data, error in found.values()), string
    finally:
        fsspec.filesystem("memory").rm("/secret.jpg")
    assert not server.asked, "nothing on loopback was asked"
    assert answered > 10


@pytest.mark.parametrize("kind", SOURCES)
def test_what_is_below_the_root_is_read(kind: str, root: Path) -> None:
    (root / "d" / "inner.jpg").symlink_to(root / "file:b.jpg")
    names = ["d/file:b.jpg", "d/inner.jpg"]
    if kind in ("list", "table of urls"):  # whose relative names are not taken as paths
        names = [f"{root}/d/file:b.jpg", f"file://{root}/d/inner.jpg"]
    if kind == "karpathy's folders":
        write(root / "d" / "secret.jpg")
        names = ["profile:7.jpg", "d/secret.jpg"]
    found = fetched(SOURCES[kind](root, names))
    assert len(found) >= len(names) and all(
        data and not error for data, error in found.values()
    ), found


def test_a_relative_path_means_nothing_to_a_fetcher(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be looked for in the folder that a worker happens to be in."""
    monkeypatch.chdir(root)
    with Fetcher(Fetch(), Trust.below(str(root))) as fetcher:
        assert "relative" in fetcher.fetch("profile:7.jpg").error
        assert fetcher.fetch(f"{root}/profile:7.jpg").data == b"profile:7.jpg"


def test_what_the_user_trusts_is_read(root: Path, server: Server) -> None:
    secret = root.parent / "secret.jpg"
    fsspec.filesystem("memory").pipe("/bucket/secret.jpg", SECRET)
    names = [
        str(secret),
        f"file://{secret}",
        "memory://bucket/secret.jpg",
        "simplecache::memory://bucket/secret.jpg",
    ]
    source = Urls(str(write(root / "list.txt", "\n".join(names))))
    assert not any(data for data, _ in fetched(source).values())
    trust = (str(root.parent), "memory://bucket", "simplecache://")
    try:
        found = fetched(source, Fetch(trust=trust))
        assert [data for data, _ in found.values()] == [SECRET] * 4, found
        found = fetched(source, Fetch(trust=trust[1:2]))
        assert [data for data, _ in found.values()] == [b"", b"", SECRET, b""], (
            "one link is not the chain"
        )
        found = fetched(source, Fetch(allow_file=True))
        assert [data for data, _ in found.values()] == [SECRET, SECRET, b"", b""]
    finally:
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("prefix", "permitted", "refused"),
    [
        (
            "s3://bucket",
            ["s3://bucket/a/b.jpg", "S3://bucket/a::b.jpg"],
            ["s3://bucket2/a", "s3a://bucket/a", "s3://"],
        ),
        (
            "s3://bucket/a/",
            ["s3://bucket/a/b.jpg"],
            ["s3://bucket/ab.jpg", "s3://bucket/a/../b.jpg"],
        ),
        ("s3://", ["s3://any/a.jpg"], ["gs://any/a.jpg"]),
        (
            "/nowhere",
            ["/nowhere/a.jpg", "file:///nowhere/a.jpg"],
            ["/nowhere2/a.jpg", "/nowhere/../a", "a.jpg"],
        ),
        ("file:///nowhere/", ["/nowhere/a.jpg"], ["/a.jpg"]),
        ("/", ["/a.jpg", "a.jpg"], ["s3://bucket/a.jpg"]),
        (
            "zip://::s3://b",
            ["zip://a.jpg::s3://b/c.zip", "s3://b/x"],
            ["zip://a.jpg::s3://c/c.zip", "tar://a::s3://b/c"],
        ),
    ],
)
def test_what_a_prefix_permits(prefix: str, permitted: list[str], refused: list[str]) -> None:
    trust = Fetch(trust=(prefix,)).trusted()
    for uri in permitted:
        trust.check(uri)
    for uri in refused:
        with pytest.raises(FetchError, match="refused"):
            trust.check(uri)


@pytest.mark.parametrize("prefix", ["", "pictures", "../pictures", "s3", "simplecache::"])
def test_a_prefix_that_names_nothing_is_refused(prefix: str) -> None:
    with pytest.raises(UserError, match=r"fetch\.trust.*absolute path"):
        Fetch(trust=(prefix,))


@pytest.mark.parametrize(
    ("root", "prefix"),
    [
        ("/data/pictures", "/data/pictures"),
        ("s3://bucket/a/list.txt", "s3://bucket"),
        ("hf://datasets/owner/name/data", "hf://datasets/owner/name"),
        ("abfs://box@account.example/a", "abfs://box@account.example"),
        ("zip://::/data/a.zip", "zip://::/data/a.zip"),
    ],
)
def test_a_source_in_a_store_may_name_its_bucket(root: str, prefix: str) -> None:
    assert Trust.below(root) == Trust((prefix,))
    assert Trust.below("https://host/list.txt") == Trust()


def test_links_of_a_chain() -> None:
    assert links_of("simplecache::s3://b/x") == ["simplecache://", "s3://b/x"]
    assert links_of("zip://a.jpg::simplecache::s3://b/x") == [
        "zip://a.jpg",
        "simplecache://",
        "s3://b/x",
    ]
    assert links_of("s3://b/x::y") == ["s3://b/x::y"] and links_of("a::b") == ["a::b"]


@pytest.mark.parametrize(
    "uri", ["a.jpg", "/a.jpg", "file:///a.jpg", "s3://any/a.jpg", "https://h/a.jpg"]
)
def test_a_program_may_name_paths_and_stores(uri: str) -> None:
    PROGRAM.check(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "simplecache::s3://b/a.jpg",
        "zip://a.jpg::/b.zip",
        "ftp://h/a",
        "memory://a",
        "reference://a",
    ],
)
def test_a_program_names_no_chains_and_odd_protocols(uri: str) -> None:
    with pytest.raises(FetchError, match="refused"):
        PROGRAM.check(uri)
