"""Folders, lists of URLs, and the keys of things that occur twice."""

import gzip
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_rows import column, noted, read, rows, write

from raycap.cli import configure
from raycap.errors import UserError
from raycap.fetch import Fetch, Fetcher, Trust
from raycap.sources import SOURCES, Folder, Notes, SourceDefaults, Urls, detect, listing
from raycap.sources.keys import NumberedKeys
from raycap.sources.manifest import Row, tables
from raycap.sources.seen_keys import SeenKeys
from raycap.sources.splits import seeded_split, split_word
from raycap.storage import sorted_runs
from raycap.storage.location import Location, existing
from raycap.uris import local_path, uri_of

# --- folder ---


def test_a_folder_gives_its_pictures_and_no_others(tmp_path: Path) -> None:
    wanted = ["a.jpg", "b.PNG", "deep/er/c.webp", "deep/d.HeIc"]
    unwanted = [
        "notes.txt",
        ".hidden.jpg",
        ".cache/x.jpg",
        "deep/.trash/y.jpg",
        "jpg",
        "Thumbs.db",
    ]
    for name in wanted + unwanted:
        write(tmp_path / name)
    assert column(Folder(str(tmp_path)), "key") == sorted(wanted)
    assert column(Folder(str(tmp_path)), "uri") == [
        str(tmp_path / name) for name in sorted(wanted)
    ]
    assert Folder(str(tmp_path)).trust == Trust((str(tmp_path),))


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*", {"a.jpg", "b.dat", "x/a.jpg", "x/y/c.JPG"}),
        ("*.jpg", {"a.jpg", "x/a.jpg", "x/y/c.JPG"}),
        ("x/*.jpg", {"x/a.jpg"}),
        ("x/**/*.jpg", {"x/a.jpg", "x/y/c.JPG"}),
        ("a.*", {"a.jpg", "x/a.jpg"}),
    ],
)
def test_globs(tmp_path: Path, glob: str, expected: set[str]) -> None:
    for name in ("a.jpg", "b.dat", "x/a.jpg", "x/y/c.JPG", ".h/a.jpg"):
        write(tmp_path / name)
    assert set(column(Folder(str(tmp_path), glob=glob), "key")) == expected


ODD_NAMES = [
    "with space.jpg",
    "new\nline.jpg",
    "50%.jpg",
    "a%20b.jpg",
    "a#2.jpg",
    "a?b.jpg",
    "*.jpg",
    "[x].jpg",
    "\N{CAMERA}.jpg",
    "a::b.jpg",
    "é.jpg",
    "e\u0301.jpg",
    "-rf.jpg",
    "'quote\".jpg",
    "back\\slash.jpg",
    "C:.jpg",
]


def test_odd_names_have_keys_of_their_own_and_open(tmp_path: Path) -> None:
    not_utf8 = [b"caf\xe9.jpg", b"\xff\xfe%.jpg", b"d\xe9p/x.jpg"]
    for name in [*map(os.fsencode, ODD_NAMES), *not_utf8, b"./%FF%FE%25.jpg"]:
        write(tmp_path / os.fsdecode(name), b"bytes of " + name)
    table = read(Folder(str(tmp_path)))
    assert set(ODD_NAMES) < set(table["key"].to_pylist())
    assert {"./caf%E9.jpg", "./%FF%FE%25.jpg", "./d%E9p/x.jpg", "%FF%FE%25.jpg"} < set(
        table["key"].to_pylist()
    )
    for key, uri in zip(table["key"].to_pylist(), table["uri"].to_pylist(), strict=True):
        path = local_path(uri)
        assert path is not None
        content = Path(path).read_bytes()
        assert key in ODD_NAMES or content.removeprefix(b"bytes of ") in [
            *not_utf8,
            b"./%FF%FE%25.jpg",
        ]
        if key in ODD_NAMES:
            assert content == b"bytes of " + os.fsencode(key)
            assert (
                Fetcher(Fetch(), Folder(str(tmp_path)).trust).fetch_all([uri])[0].data == content
            )


@given(st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name))
def test_uri_of_a_local_path_leads_back_to_it(name: bytes) -> None:
    path = "/nowhere/" + os.fsdecode(name)
    assert local_path(uri_of(path)) == path
    uri_of(path).encode()


def test_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "real.jpg")
    write(tmp_path / "outside" / "secret.jpg")
    (root / "inside.jpg").symlink_to(root / "real.jpg")
    (root / "out.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (root / "nowhere.jpg").symlink_to(root / "gone.jpg")
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "readme").symlink_to(root / "gone")
    (root / "folder.jpg").symlink_to(tmp_path / "outside")
    found = {row["key"]: row["error"].partition(":")[0] for row in rows(Folder(str(root)))}
    assert found == {
        "folder.jpg": "a link to a directory, not to a file",
        "inside.jpg": "",
        "nowhere.jpg": "a link to a missing file",
        "out.jpg": "a link that leads out of the folder (not followed",
        "real.jpg": "",
    }
    (note,) = noted(Folder(str(root))).lines()
    assert note.startswith("3 links left out") and "readme" in note


def test_the_root_itself_may_be_a_link_or_hidden(tmp_path: Path) -> None:
    write(tmp_path / ".pictures" / "a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / ".pictures")
    assert column(Folder(str(tmp_path / ".pictures")), "key") == column(
        Folder(str(tmp_path / "link")), "key"
    )


def test_a_folder_that_cannot_be_listed_costs_only_itself(tmp_path: Path) -> None:
    for name in ("a.jpg", "b/x.jpg", "c.jpg"):
        write(tmp_path / name)
    notes = Notes()
    walk = listing.walk(existing(str(tmp_path)), notes)
    assert next(walk).path == "a.jpg"
    shutil.rmtree(tmp_path / "b")
    assert [found.path for found in walk if not found.is_folder] == ["c.jpg"]
    assert notes.lines() == [
        f"1 folder could not be listed ({tmp_path}/b: No such file or directory)"
    ]


def test_the_first_rows_come_before_the_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3000):
        (tmp_path / f"{index}.jpg").touch()
    looked_at = 0
    scandir = os.scandir

    class Counting:
        def __init__(self, path: str) -> None:
            self._entries = scandir(path)

        def __enter__(self) -> "Counting":
            return self

        def __exit__(self, *error: object) -> None:
            self._entries.close()

        def __iter__(self) -> "Counting":
            return self

        def __next__(self) -> "os.DirEntry[str]":
            nonlocal looked_at
            looked_at += 1
            return next(self._entries)

    monkeypatch.setattr(os, "scandir", Counting)
    monkeypatch.setattr(listing, "SORTED_NAMES", 100)
    tables = Folder(str(tmp_path)).tables()
    assert len(next(tables)) == 64
    assert looked_at == 100
    assert len(next(tables)) == 1000
    assert looked_at <= 1200
    assert sum(map(len, tables)) == 3000 - 1064


def test_one_picture(tmp_path: Path) -> None:
    picture = write(tmp_path / "a b.jpg")
    assert detect(str(picture)) == "folder"
    assert rows(Folder(str(picture))) == [
        {
            "key": "a b.jpg",
            "uri": str(picture),
            "split": "",
            "references": [],
            "bytes": None,
            "error": "",
        }
    ]


def test_a_bucket(request: pytest.FixtureRequest) -> None:
    bucket = fsspec.filesystem("memory")
    root = f"memory://{request.node.name}"
    for name in ["a.jpg", "deep/b c#1%.png", "deep/.x/c.jpg", "notes.txt"]:
        bucket.pipe(f"{root}/{name}", name.encode())
    table = read(Folder(root + "/"))
    assert table["key"].to_pylist() == ["a.jpg", "deep/b c#1%.png"]
    assert [fsspec.open(uri).open().read().decode() for uri in table["uri"].to_pylist()] == table[
        "key"
    ].to_pylist()
    assert column(Folder(f"{root}/a.jpg"), "uri") == [f"{root}/a.jpg"]
    assert detect(root) == "folder"


def test_a_file_uri_is_a_local_folder(tmp_path: Path) -> None:
    write(tmp_path / "a b" / "c.jpg")
    for uri in (f"file://{tmp_path}/a b", (tmp_path / "a b").as_uri()):
        assert column(Folder(uri), "uri") == [str(tmp_path / "a b" / "c.jpg")]


def test_a_folder_without_pictures_is_refused_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    write(tmp_path / "b.raw")
    write(tmp_path / "c.raw")
    with pytest.raises(
        UserError, match=r"(?s)ends in .*\.jpg.*2 with \.raw, 1 with \.txt.*--source\.glob"
    ):
        list(Folder(str(tmp_path)).tables())
    with pytest.raises(UserError, match=r"named \*\.gif"):
        list(Folder(str(tmp_path), glob="*.gif").tables())


def test_a_wrong_path_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "a.jpg")
    with pytest.raises(
        UserError,
        match=rf"no such file or folder: {tmp_path}/photo; did you mean {tmp_path}/photos\?",
    ):
        Folder(str(tmp_path / "photo")).check()
    with pytest.raises(UserError, match=rf"the nearest that exists is {tmp_path}$"):
        existing(str(tmp_path / "xyz" / "deeper" / "still"))
    with pytest.raises(UserError, match="did you mean"):
        detect(str(tmp_path / "phtos"))
    with pytest.raises(UserError, match="nosuch"):
        detect("nosuch://bucket/x")


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UserError, match="begins with '/'"):
        Folder("x", glob="/a/*.jpg")


# --- lists of URLs ---


def test_a_list(tmp_path: Path) -> None:
    text = "\ufeffhttp://h/a.jpg\r\n\r\n# a comment\r\n  http://h/b.jpg \r\nhttp://h/a.jpg\r\nhttp://h/ü.jpg"
    path = write(tmp_path / "list.txt", text)
    zipped = write(tmp_path / "list.txt.gz", gzip.compress(text.encode()))
    wide = write(tmp_path / "wide.txt", text.removeprefix("\ufeff").encode("utf-16"))
    for one in (path, zipped, wide):
        assert detect(str(one)) == "urls"
        table = read(Urls(str(one)))
        assert table["key"].to_pylist() == [
            "http://h/a.jpg",
            "http://h/b.jpg",
            "http://h/a.jpg#2",
            "http://h/ü.jpg",
        ]
        assert table["uri"].to_pylist()[2] == "http://h/a.jpg"
        assert noted(Urls(str(one))).lines() == [
            "1 row repeats an earlier URL and got a number behind the key; "
            "most often 'http://h/a.jpg' (2 times)"
        ]
    assert Urls(str(path)).trust == Trust((str(tmp_path),))


def test_one_url() -> None:
    url = "https://example.org/a.jpg?size=large#x"
    assert detect(url) == "urls"
    assert [(row["key"], row["uri"]) for row in rows(Urls(url))] == [(url, url)]


def test_a_list_of_paths_has_to_be_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", "a.jpg\n./b/c.jpg\n/abs/d.jpg\nhttp://h/e.jpg\n")
    local = Urls(str(path), local=True)
    assert column(local, "uri") == [
        f"{tmp_path}/a.jpg",
        f"{tmp_path}/b/c.jpg",
        "/abs/d.jpg",
        "http://h/e.jpg",
    ]
    assert column(local, "key")[0] == "a.jpg"
    write(path, "a.jpg\nb.jpg\n")
    with pytest.raises(UserError, match=r"--source\.local"):
        Urls(str(path)).check()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no URL in"),
        (b"# nothing\n\n", "no URL in"),
        (b"\x89PNG\0\0\0\rIHDR\n", "not a text file"),
        (gzip.compress(b"http://h/a.jpg\n" * 9, mtime=0)[:30], "damaged gzip"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Urls(str(write(tmp_path / "list.txt", content))).check()


# --- keys, splits ---

few_names = st.lists(
    st.sampled_from(["", "a", "b", "#1", "#2", "a#1", "a#2", "a#2#1", "a#2#2", "b#02"])
)


@given(st.lists(few_names))
def test_keys_are_unique_and_contain_name_and_occurrence(batches: list[list[str]]) -> None:
    keys, met = NumberedKeys(), dict[str, int]()
    found: dict[str, tuple[str, int]] = {}
    for names in batches:
        for name, key in zip(names, keys.of(names), strict=True):
            met[name] = met.get(name, 0) + 1
            assert key and key not in found
            found[key] = (name, met[name])
    assert keys.repeats == sum(met.values()) - len(met)
    if keys.repeats:
        assert met[keys.most[0]] == keys.most[1] == max(met.values())
    # The same whatever stands between: a key hangs on its name and occurrence alone.
    for key, (name, times) in found.items():
        assert NumberedKeys().of([name] * times)[-1] == key


@given(
    st.lists(st.lists(st.integers(0, 400), max_size=60), max_size=60),
    st.integers(0, 200),
    st.integers(1, 70),
)
def test_keys_are_counted_in_memory_and_in_files(
    batches: list[list[int]], in_memory: int, at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_runs, "MOST_IN_MEMORY", in_memory)
        patch.setattr(sorted_runs, "PIECE", at_once)
        seen, met = SeenKeys(), dict[int, int]()
        for batch in batches:
            expected = []
            for number in batch:
                expected.append(met.get(number, 0))
                met[number] = expected[-1] + 1
            assert seen.add([str(number) for number in batch]) == expected


def test_keys_take_eight_bytes_each_and_only_few_of_them_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sorted_runs, "MOST_IN_MEMORY", 10_000)
    seen, order = SeenKeys(), list(range(100_000))
    random.Random(0).shuffle(order)
    for start in range(0, len(order), 1000):
        assert not any(
            seen.add(
                [f"http://example.org/{number}.jpg" for number in order[start : start + 1000]]
            )
        )
    assert sum(run.nbytes for run in seen._runs) == 8 * len(order)
    assert len(seen._runs) <= np.log2(len(order) / 1000) + 1
    in_memory = [run for run in seen._runs if not isinstance(run.base, np.memmap)]
    assert sum(map(len, in_memory)) <= 2 * 10_000
    assert all(seen.add([f"http://example.org/{number}.jpg" for number in order[:1000]]))


def test_no_room_for_temporary_files_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_runs, "MOST_IN_MEMORY", 1)
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    seen = SeenKeys()
    with pytest.raises(UserError, match=r"temporary files to /proc/nowhere: .*TMPDIR"):
        for number in range(3):
            seen.add([str(number)])


def test_a_drawn_split_is_near_its_fractions_and_hangs_on_key_and_seed_alone() -> None:
    fractions = (0.8, 0.15, 0.05)
    drawn = [seeded_split(f"{number}.jpg", fractions, seed=1) for number in range(20_000)]
    shares = [drawn.count(split) / len(drawn) for split in ("train", "dev", "test")]
    assert np.allclose(shares, fractions, atol=0.01)
    assert drawn == [seeded_split(f"{number}.jpg", fractions, seed=1) for number in range(20_000)]
    assert drawn != [seeded_split(f"{number}.jpg", fractions, seed=2) for number in range(20_000)]
    assert {seeded_split(str(number), (0.0, 1.0, 0.0), 0) for number in range(99)} == {"dev"}


def test_split_words() -> None:
    assert [
        split_word(word) for word in ("train", "val", "Validation", " TEST ", "restval", "")
    ] == [
        "train",
        "dev",
        "dev",
        "test",
        "restval",
        "",
    ]


@dataclass(frozen=True)
class Album(SourceDefaults):
    """A source that raycap does not have: a text file with one path a line."""

    path: str

    @classmethod
    def recognises(cls, file: Location) -> bool:
        return file.name.endswith(".album")

    @property
    def trust(self) -> Trust:
        return Trust.below(existing(self.path).parent.uri)

    def check(self) -> None:
        existing(self.path)

    def tables(self, notes: Notes | None = None) -> Iterator[pa.Table]:
        file = existing(self.path)
        names = file.open().read().decode().splitlines()
        return tables((Row(name, (file.parent / name).uri) for name in names), lambda: "empty")


def test_a_new_source_is_one_class_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "album", Album)
    write(tmp_path / "a.jpg")
    album = str(write(tmp_path / "holiday.album", "a.jpg\n"))
    assert detect(album) == "album"
    source = configure("inspect", [album])[0].source
    assert source == Album(album)
    assert column(source, "uri") == [str(tmp_path / "a.jpg")]


def test_importing_the_sources_loads_no_heavy_package() -> None:
    heavy = ("torch", "ray", "pyarrow", "fsspec", "pandas", "datasets")
    program = (
        f"import sys, raycap.sources; print([name for name in {heavy} if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


# Which reads nothing.
@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "shapes"])
def test_every_kind_refuses_a_path_that_is_not_there(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        SOURCES[kind](path=str(tmp_path / "missing")).check()
