"""Damaged and odd files of every kind of source: each gives rows or a UserError.

Seeded mutants of valid files. `python tests/test_fuzz_sources.py 5000` tries more of them.
"""

import gc
import io
import json
import random
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_rows import write

from raycap.config import Config  # noqa: F401 - as the command line loads it
from raycap.errors import UserError
from raycap.schema import MANIFEST
from raycap.sources import (
    SOURCES,
    Coco,
    Flickr,
    HuggingFace,
    Karpathy,
    Notes,
    Table,
    Urls,
    WebDataset,
    detect,
)

MUTANTS = 60  # of each kind

DEEP = "[" * 2000 + "]" * 2000
FAIRLY_DEEP: Any = []
for _ in range(300):
    FAIRLY_DEEP = [FAIRLY_DEEP]
# What a JSON file may hold where something else belongs.
ODD_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\ud800",
    "caf\udce9.jpg",
    "a\0b",
    "../../x.jpg",
    "/etc/passwd",
    "x" * 5000,
    "http://",
    "http:///a.jpg",
    "a,b",
    "\x1b[2J",
    [],
    {},
    [1, [2]],
    {"a": {"b": None}},
    FAIRLY_DEEP,
]
ODD_BYTES = [
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"#",
    b"|",
    b"NaN",
    b"null",
]
ODD_BYTES += [b"\\ud800", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b" " * 3000]
ODD_BYTES += [b"\xef\xbb\xbf", b"\x1f\x8b", b"\xff\xfe"]

NAMES = [f"{number}.jpg" for number in range(6)]


def csv_file() -> bytes:
    return b"url,caption,split,note\n" + b"".join(
        f'http://h/{name},"said ""{name}"", twice",train,n\n'.encode() for name in NAMES
    )


def json_lines() -> bytes:
    rows = [{"url": f"http://h/{name}", "captions": ["a", "b"], "note": "n"} for name in NAMES]
    return "\n".join(map(json.dumps, rows)).encode()


def metadata_lines() -> bytes:
    return "\n".join(json.dumps({"file_name": name, "text": "said"}) for name in NAMES).encode()


def parquet_of(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=2, **options)
    return file.getvalue()


def parquet_table() -> bytes:
    urls = [f"http://h/{name}" for name in NAMES]
    return parquet_of({"url": urls, "captions": [["a", None], []] * 3, "n": range(6)})


def parquet_pictures() -> bytes:
    pictures = [{"bytes": b"picture" * 9, "path": name} for name in NAMES]
    return parquet_of({"image": pictures, "text": NAMES}, compression="gzip")


def fields() -> bytes:
    more = {"size": [3, 4.5, None]}
    return json.dumps(
        {"caption": "a dog", "captions": ["a", "b"], "url": "x", "more": more}
    ).encode()


def tar_file(about: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in NAMES[:4]:
            for ending, data in ((".jpg", b"\xff\xd8\xff"), (".json", about), (".txt", b"a dog")):
                member = tarfile.TarInfo(name.partition(".")[0] + ending)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def coco_document() -> Any:
    images = [{"id": number, "file_name": name} for number, name in enumerate(NAMES)]
    said = [{"image_id": number, "caption": "said"} for number in range(6)]
    return {"images": images, "annotations": said}


def karpathy_document() -> Any:
    sentence = {"tokens": ["a", "dog"], "raw": "A dog."}
    return {
        "images": [
            {"filename": name, "filepath": "", "split": "train", "sentences": [sentence, sentence]}
            for name in NAMES
        ]
    }


def token_file() -> bytes:
    return "".join(f"{name}#{number}\ta dog .\n" for name in NAMES for number in range(3)).encode()


def bars_file() -> bytes:
    lines = "".join(f"{name}| {number}| a dog .\n" for name in NAMES for number in range(3))
    return ("image_name| comment_number| comment\n" + lines).encode()


def flipped(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, most often near both ends, where headers and footers are."""
    mutant = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place = chance.choice(
            (chance.randrange(len(data)), -1 - chance.randrange(min(len(data), 300)))
        )
        mutant[place] = chance.choice(
            (mutant[place] ^ 1 << chance.randrange(8), chance.randrange(256))
        )
    return bytes(mutant)


def mutant_of(data: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(4)
    place = chance.randrange(len(data))
    if kind == 0:
        return data[:place]
    if kind == 1:
        return flipped(data, chance)
    end = place + chance.choice((0, 0, 1, 4, 40))
    return data[:place] + chance.choice(ODD_BYTES) + data[end:]


def odd_document(document: Any, chance: random.Random) -> bytes:
    """Values anywhere in a JSON document replaced or dropped."""
    if chance.random() < 0.2:
        return mutant_of(json.dumps(document).encode(), chance)
    whole = {"document": json.loads(json.dumps(document))}
    for _ in range(chance.choice((1, 1, 3, 9))):
        places = list(_places(whole))
        holder, key = chance.choice(places)
        if chance.random() < 0.2 and holder is not whole:
            del holder[key]
        else:
            holder[key] = json.loads(json.dumps(chance.choice(ODD_VALUES)))
    return json.dumps(whole["document"]).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document that holds a value."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if not isinstance(holder, dict | list):
            continue
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            waiting.append(holder[key])


def odd_lines(make: Callable[[], bytes], chance: random.Random) -> bytes:
    """JSON lines, some with odd values."""
    if chance.random() < 0.4:
        return mutant_of(make(), chance)
    rows = [json.loads(line) for line in make().splitlines()]
    for _ in range(chance.choice((1, 2, 6))):
        row = chance.choice(rows)
        row[chance.choice(list(row))] = chance.choice(ODD_VALUES)
    return "\n".join(map(json.dumps, rows)).encode()


Kind = tuple[str, Callable[[random.Random], bytes], Callable[[str], Any]]
KINDS: dict[str, Kind] = {
    "csv": (
        "t.csv",
        lambda chance: mutant_of(csv_file(), chance),
        lambda path: Table(path, references=("auto",), split_column="split", columns=("note",)),
    ),
    "tsv": (
        "t.tsv",
        lambda chance: mutant_of(csv_file().replace(b",", b"\t"), chance),
        lambda path: Table(path),
    ),
    "json lines": (
        "t.jsonl",
        lambda chance: odd_lines(json_lines, chance),
        lambda path: Table(path, references=("captions",), columns=("note",)),
    ),
    "parquet": (
        "t.parquet",
        lambda chance: flipped(parquet_table(), chance),
        lambda path: Table(path, references=("auto",), columns=("n",)),
    ),
    "pictures in parquet": (
        "p.parquet",
        lambda chance: flipped(parquet_pictures(), chance),
        HuggingFace,
    ),
    "imagefolder": (
        "metadata.jsonl",
        lambda chance: odd_lines(metadata_lines, chance),
        HuggingFace,
    ),
    "coco": ("captions_val.json", lambda chance: odd_document(coco_document(), chance), Coco),
    "karpathy": (
        "dataset_x.json",
        lambda chance: odd_document(karpathy_document(), chance),
        Karpathy,
    ),
    "tokens": ("Flickr8k.token.txt", lambda chance: mutant_of(token_file(), chance), Flickr),
    "bars": ("results.csv", lambda chance: mutant_of(bars_file(), chance), Flickr),
    "tar": ("x.tar", lambda chance: flipped(tar_file(fields()), chance), WebDataset),
    "json in a tar": (
        "x.tar",
        lambda chance: tar_file(odd_document(json.loads(fields()), chance)),
        lambda path: WebDataset(path, columns=("url", "more")),
    ),
    "list": ("urls.txt", lambda chance: mutant_of(csv_file(), chance), Urls),
}


def try_mutant(kind: str, number: int, folder: Path) -> str:
    """What became of one: "rows" or "refused"."""
    name, mutant, source = KINDS[kind]
    path = str(write(folder / name, mutant(random.Random(f"{kind} {number}"))))
    try:
        named = SOURCES[detect(path)](path)  # whatever it is taken for
        for one in (named, source(path)):
            one.check()
            look_through(one)
    except UserError as refusal:
        assert str(refusal).strip()
        return "refused"
    return "rows"


def look_through(source: Any) -> None:
    notes, keys = Notes(), []
    for table in source.tables(notes):
        assert table.select(MANIFEST.names).schema == MANIFEST
        rows = table.to_pylist()  # which fails where a text is none
        keys += [row["key"] for row in rows]
        json.dumps(rows, default=len, ensure_ascii=False).encode()
    assert keys and len(set(keys)) == len(keys) and all(keys)
    "".join(notes.lines()).encode()
    json.loads(notes.to_json())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for name in NAMES[:4]:
        write(folder / name)
    return folder


@pytest.fixture
def no_finalisers() -> Iterator[None]:
    """JSON that is nested too deeply uses up the stack. If the garbage collector runs just then,
    finalisers of garbage from other tests fail for lack of stack, and pytest reports them here."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("no_finalisers")
def test_mutants_give_rows_or_a_refusal(kind: str, folder: Path) -> None:
    fates = [try_mutant(kind, number, folder) for number in range(MUTANTS)]
    assert "rows" in fates, "a mutation that always breaks the file shows nothing"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for name in NAMES[:4]:
            write(Path(place) / name)
        for kind in KINDS:
            faults = 0
            for number in range(int(sys.argv[1])):
                try:
                    try_mutant(kind, number, Path(place))
                except Exception as error:  # noqa: BLE001
                    faults += 1
                    if faults <= 3:
                        import traceback

                        traceback.print_exc()
                    print(f"{kind} {number}: {type(error).__name__}: {str(error)[:200]}")
            print(f"{kind}: {faults} faults")
