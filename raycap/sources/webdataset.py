"""WebDataset: tars of samples, each a picture with its caption and its fields, as img2dataset
writes them."""

import hashlib
import itertools
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from raycap.errors import UserError
from raycap.fetch.trust import Trust, of_prefixes
from raycap.sources.folder import PICTURE_NAME, key_of
from raycap.sources.keys import NumberedKeys
from raycap.sources.lines import LONGEST_URL, Lines, name_unpacked
from raycap.sources.listing import is_hidden
from raycap.sources.manifest import Row, tables, utf8
from raycap.sources.notes import (
    DAMAGED_TAR,
    UNPICTURED,
    UNUSABLE_CAPTION,
    UNUSABLE_FILE,
    Notes,
    nothing,
)
from raycap.sources.source import SourceDefaults
from raycap.sources.splits import Fractions, check_fractions, drawn_splits, split_in
from raycap.sources.table import reserved_names
from raycap.sources.tar import DamagedTar, Member, members
from raycap.sources.tar_paths import PACKED_TAR, TAR, WILD, Tar, TarPaths, path_of_url
from raycap.sources.tar_reading import Unreadable, Wanted, opened, read_exactly, read_pictures
from raycap.sources.urls import ENDINGS as LIST_ENDINGS
from raycap.storage.location import Location, locate
from raycap.uris import is_web, name_of

if TYPE_CHECKING:
    import pyarrow as pa

# Bytes of the largest picture, and of the largest caption or JSON, that are read from a tar.
LARGEST_PICTURE = 1 << 28
LARGEST_TEXT = 1 << 24
# Bytes by which the format of a picture is known.
_HEAD = 1 << 10
# Tars that `check` tries to open.
_TRIED = 3
# Lines of a text file by which a list of tars is known.
_LINES_TRIED = 20

_TEXTS = ("txt", "caption", "cap")
_CAPTIONS = ("references", "captions", "caption", "texts", "text")
_NUMBERED = re.compile(r"(text|caption)_?\d+", re.IGNORECASE)
_DOTS = re.compile(r"^(\./+)+")

# Where a picture is, behind the columns of the manifest.
PLACE = ("member_tar", "member_offset", "member_size", "member_sha256")


@dataclass(frozen=True)
class WebDataset(SourceDefaults):
    """Tars as the webdataset library and img2dataset write them. Members that follow each other
    and have the same path up to the first dot of the file name are a sample: '000000017.jpg',
    '000000017.txt' and '000000017.json'. Each sample with a picture is a row.

    The key is the tar's path below the folder, without '.tar', and that of the sample:
    '00000/000000017'. A key that occurs again has '#2', '#3', ... behind. Pictures are known by
    their bytes. What a damaged or cut tar no longer holds is noted, and the next tar is read.
    Compressed tars are refused.
    """

    path: str
    """One tar, a folder of tars, a glob ('shards/*.tar'), braces ('shards/{00000..00099}.tar'), or
    a text file with one tar a line: paths, fsspec URIs, or http(s) URLs on a server that gives
    parts of files."""
    picture: str = ""
    """The ending of the picture's member ('jpg', 'left.png'), if samples hold several pictures.
    Empty: the first picture, one with a single ending before others."""
    captions: tuple[str, ...] = ()
    """Fields of the JSON that hold human captions, each text or a list. Empty: caption, text,
    captions, caption_0, ... if present. The .txt, .caption and .cap members count always."""
    columns: tuple[str, ...] = ()
    """Fields of the JSON to carry through to the output, as text."""
    fractions: Fractions | None = None
    """Draw splits by the keys: the parts for train, dev, test. Else splits are those of files or
    folders named train, validation, test."""
    trusted: tuple[str, ...] = ()
    """What a list of tars may name besides web addresses and what is below its own folder or
    bucket: absolute paths of folders, or beginnings of URIs (s3://bucket)."""
    allow_private: bool = False
    """Whether URLs of tars may lead to private, loopback and other non-public addresses."""

    @classmethod
    def accepts(cls, path: str) -> bool:
        name = path_of_url(path) if is_web(path) else path
        if not (TAR.fullmatch(name) or PACKED_TAR.fullmatch(name)):
            return False
        return is_web(path) or (WILD.search(path) is not None and not locate(path).exists())

    @classmethod
    def recognises(cls, file: Location) -> bool:
        if TAR.fullmatch(file.name) or PACKED_TAR.fullmatch(file.name):
            return True
        if not name_unpacked(file.name).endswith(LIST_ENDINGS):
            return False
        lines = itertools.islice(Lines(file, LONGEST_URL).or_faults(), _LINES_TRIED)
        names = (line.strip() for line in lines if isinstance(line, str))
        first = next((name for name in names if name and not name.startswith("#")), "")
        return TAR.fullmatch(path_of_url(first) if is_web(first) else first) is not None

    def __post_init__(self) -> None:
        check_fractions(self.fractions)
        of_prefixes(self.trusted, "--source.trusted")
        if self.columns and (taken := sorted(set(self.columns) & {*reserved_names(), *PLACE})):
            raise UserError(f"cannot carry {', '.join(taken)}: raycap has columns of that name")
        if len(set(self.columns)) < len(self.columns):
            raise UserError(f"--source.columns names a column twice: {', '.join(self.columns)}")

    @property
    def trust(self) -> Trust:
        """For those who show the pictures: a URI is tar://MEMBER::TAR."""
        return Trust(("tar://",)).also(self._paths.trust())

    @property
    def _paths(self) -> TarPaths:
        return TarPaths(self.path, self.trusted)

    @property
    def carried(self) -> tuple[str, ...]:
        return self.columns

    def check(self) -> None:
        tars = self._paths.tars(Notes())
        if packed := [tar.uri for tar in tars if PACKED_TAR.fullmatch(tar.below)]:
            raise UserError(_packed(packed[0]))
        fault = ""
        for tar in tars[:_TRIED]:
            try:
                with opened(tar.uri, self.allow_private) as stream:
                    next(members(stream), None)
                return
            except Unreadable as error:
                fault = f"cannot read {tar.uri}: {error}"
            except DamagedTar as error:
                fault = f"{tar.uri} is no tar that can be read: {error}"
        raise UserError(fault)

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        notes = notes or Notes()
        nothing_found = lambda: nothing(f"no picture in {self.path}", notes)  # noqa: E731
        return self._tables(self._paths.tars(notes), notes, nothing_found)

    def units(self) -> tuple[str, ...]:
        """Each tar, and before them the search for them, which may note something."""
        tars = self._paths.tars(Notes())
        prefixes = [_prefix(tar) for tar in tars]
        folders = {str(parent) for prefix in prefixes for parent in PurePosixPath(prefix).parents}
        # Samples of a.tar and of a/b.tar may have the same keys.
        is_unique = len(set(prefixes)) == len(prefixes) and folders.isdisjoint(prefixes)
        if len(tars) < 2 or not is_unique:
            return ("",)
        return ("", *(f"{tar.below}\t{tar.uri}" for tar in tars))

    def tables_of_unit(self, unit: str, notes: Notes) -> "Iterator[pa.Table]":
        if not unit:
            self._paths.tars(notes)
            return iter(())
        below, _, uri = unit.partition("\t")
        return self._tables([Tar(uri, below)], notes, None)

    def _tables(
        self, tars: Sequence[Tar], notes: Notes, nothing_found: Callable[[], str] | None
    ) -> "Iterator[pa.Table]":
        import pyarrow as pa  # here, so that `raycap --help` stays quick

        # Of the rows that are not yet in a table.
        samples: deque[_Sample] = deque()
        places = pa.schema(
            [*zip(PLACE, (pa.string(), pa.int64(), pa.int64(), pa.string()), strict=True)]
        )

        def rows() -> Iterator[Row]:
            for row, sample in self._rows(tars, notes):
                samples.append(sample)
                yield row

        for table in tables(rows(), nothing_found):
            own = [samples.popleft() for _ in range(len(table))]
            for name in self.columns:
                values = pa.array([sample.fields.get(name) for sample in own], pa.string())
                table = table.append_column(name, values)
            for index, column in enumerate(places):
                values = pa.array([sample.place[index] for sample in own], column.type)
                table = table.append_column(column, values)
            yield table

    def embedded_pictures(self, rows: "pa.Table") -> list[bytes | None]:
        """Reads the pictures' parts of the tars only. None for one that is not there any more."""
        wanted: dict[str, list[Wanted]] = {}
        places = zip(*(rows[name].to_pylist() for name in PLACE), strict=True)
        for index, (tar, offset, size, sha256) in enumerate(places):
            wanted.setdefault(tar, []).append(Wanted(offset, size, index, sha256))
        found: list[bytes | None] = [None] * len(rows)
        for tar, pictures in wanted.items():
            for index, data in read_pictures(tar, self.allow_private, pictures):
                found[index] = data
        return found

    def _rows(self, tars: Sequence[Tar], notes: Notes) -> "Iterator[tuple[Row, _Sample]]":
        keys = NumberedKeys()
        for tar in tars:
            split = next(filter(None, map(split_in, reversed(tar.below.split("/")))), "")
            prefix = _prefix(tar)
            for sample in self._samples(tar, notes):
                name = key_of(f"{prefix}/{sample.name}")
                [key] = keys.of([name])
                [word] = drawn_splits([name], self.fractions) or [split]
                uri = f"tar://{sample.member.name}::{tar.uri}"
                sample.place = (tar.uri, *sample.place[1:])
                references = list(dict.fromkeys(sample.captions))
                yield Row(key, uri, word, references, sample.picture, sample.error), sample
                sample.picture = None
        keys.note_repeats("sample of its tar", notes)

    def _samples(self, tar: Tar, notes: Notes) -> "Iterator[_Sample]":
        """The samples with a picture of one tar, up to where it can be read."""
        sample: _Sample | None = None
        kind, fault = UNUSABLE_FILE, ""
        try:
            with opened(tar.uri, self.allow_private) as stream:
                kind = DAMAGED_TAR
                for member in members(stream):
                    path = _DOTS.sub("", member.name)
                    if is_hidden(path) or path.startswith("__MACOSX/"):
                        continue
                    folder, slash, file = path.rpartition("/")
                    stem, _, ending = file.partition(".")
                    name, ending = folder + slash + stem, ending.lower()
                    if sample is None or sample.name != name or ending in sample.endings:
                        if sample is not None and sample.is_row(tar, notes):
                            yield sample
                        sample = _Sample(name, member)
                    sample.endings.add(ending)
                    self._add(sample, member, ending, stream, tar, notes)
        except (DamagedTar, Unreadable) as error:
            fault = str(error)
        # What a cut tar holds of its last sample may be its picture.
        if sample is not None and sample.is_row(tar, notes):
            yield sample
        if fault:
            notes.add(kind, f"{tar.below}: {fault}")

    def _add(
        self,
        sample: "_Sample",
        member: Member,
        ending: str,
        stream: IO[bytes],
        tar: Tar,
        notes: Notes,
    ) -> None:
        """Takes from one member what the row needs of it."""
        if ending in (*_TEXTS, "json"):
            where = f"{tar.below}: {member.name}"
            if member.kind != "file" or member.size > LARGEST_TEXT:
                notes.add(UNUSABLE_CAPTION, f"{where} is a link or too large")
                return
            stream.seek(member.offset)
            text = read_exactly(stream, member.size).decode("utf-8-sig", "replace").strip()
            if ending != "json":
                sample.captions += [text] if text else []
                return
            fields = _json_object(text)
            if fields is None:
                notes.add(UNUSABLE_CAPTION, f"{where} is no JSON object")
                return
            sample.captions += _captions_of(fields, self.captions)
            sample.fields |= {name: _as_text(fields.get(name)) for name in self.columns}
            return
        if self.picture and ending != self.picture.lower().lstrip("."):
            return
        has_name = PICTURE_NAME.fullmatch(member.name) is not None
        if member.kind != "file":
            if has_name and sample.rank > _RANK_OF_LINKS:
                what = "a link" if member.kind == "link" else "a sparse file"
                sample.take(_RANK_OF_LINKS, member, None, f"{what} in a tar has no bytes there")
            return
        stream.seek(member.offset)
        head = read_exactly(stream, min(member.size, _HEAD))
        is_picture = _is_picture(head)
        if not (is_picture or has_name or self.picture):
            return
        rank = (0 if is_picture and has_name else 1 if is_picture else 2, ending.count("."))
        if rank >= sample.rank:
            return
        if member.size > LARGEST_PICTURE:
            most = f"{LARGEST_PICTURE / 1e6:.0f} MB"
            sample.take(rank, member, None, f"larger than {most}, the most for one in a tar")
            return
        rest = read_exactly(stream, member.size - len(head))
        sample.take(rank, member, head + rest, "" if member.size else "an empty file")


_RANK_OF_LINKS = (3, 0)
_NO_RANK = (4, 0)


@dataclass
class _Sample:
    name: str
    member: Member  # the picture, once there is one
    rank: tuple[int, int] = _NO_RANK  # how good the picture's member is, the lowest is the best
    picture: bytes | None = None
    error: str = ""
    endings: set[str] = field(default_factory=set)  # of its members so far
    captions: list[str] = field(default_factory=list)
    fields: dict[str, str | None] = field(default_factory=dict)
    place: tuple[str, int, int, str] = ("", 0, 0, "")

    def take(
        self, rank: tuple[int, int], member: Member, picture: bytes | None, error: str
    ) -> None:
        self.rank, self.member, self.picture, self.error = rank, member, picture, error
        digest = "" if picture is None else hashlib.sha256(picture).hexdigest()
        self.place = ("", member.offset, member.size, digest)

    def is_row(self, tar: Tar, notes: Notes) -> bool:
        """Whether it has a picture; notes it if not."""
        if self.rank == _NO_RANK:
            notes.add(UNPICTURED, f"{tar.below}: {self.name}")
        return self.rank != _NO_RANK


def _prefix(tar: Tar) -> str:
    """What the keys of a tar's samples begin with."""
    return re.sub(r"\.tar$", "", tar.below, flags=re.IGNORECASE)


def _packed(uri: str) -> str:
    plain = PurePosixPath(name_of(uri)).stem
    return (
        f"{uri} is a compressed tar: single pictures cannot be read from it. Pictures are "
        f"compressed already, so unpack it to {plain} first (gzip -d, zstd -d, ...)"
    )


def _is_picture(head: bytes) -> bool:
    from raycap.images.formats import READERS, picture_format  # Pillow takes 100 ms

    return picture_format(head) in READERS


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _captions_of(fields: dict[str, Any], names: Sequence[str]) -> list[str]:
    """From the fields given, or the first of the usual names, or caption_0, caption_1, ..."""
    if not names:
        usual = [name for name in _CAPTIONS if fields.get(name)][:1]
        names = usual or sorted(filter(_NUMBERED.fullmatch, fields))
    found: list[str] = []
    for name in names:
        value = fields.get(name)
        texts = value if isinstance(value, list) else [value]
        found += [text.strip() for text in texts if isinstance(text, str)]
    return [caption for caption in found if caption]


def _as_text(value: Any) -> str | None:
    """A JSON value as text: a string as it is, anything else as JSON."""
    if value is None:
        return None
    try:
        return utf8(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    except RecursionError:
        return None
