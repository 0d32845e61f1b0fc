"""Tars of pictures with their captions."""

import contextlib
import hashlib
import io
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raycap.errors import UserError
from raycap.fetch import Fetcher
from raycap.schema import SUCCESS
from raycap.sinks.rows import Row, captioned_rows, chosen_mask, json_line, planned_table
from raycap.sinks.sink import Sink, SinkSettings
from raycap.sources import Source
from raycap.sources.folder import PICTURE_ENDINGS
from raycap.uris import name_of

# Bodies that a tar holds in memory at a time, and one body more; they are fetched many at once.
BODIES_IN_MEMORY = 32 * 2**20
# Pictures that are asked of the source at a time, if it holds them itself.
EMBEDDED_AT_ONCE = 16
# What is kept of a waiting picture, to tell its format.
FIRST_BYTES = 1024
# Of a picture whose name does not tell its format.
ENDINGS = {"jpeg": ".jpg", "tiff": ".tif", "heif": ".heic", "jpeg2000": ".jp2", "jpeg-xl": ".jxl"}


class WebDatasetTars(Sink):
    """A tar of pictures as they are at their source, captions and rows, for the rows that have a
    caption, in their order. A picture that is not the captioned one any more is left out."""

    name, ending = "webdataset", ".tar"

    def write(self, part: str, settings: SinkSettings) -> Mapping[str, int]:
        table = settings.folder.reading(
            part, lambda file: pq.read_table(file, columns=["uri", "sha256", "status"])
        )
        mask = chosen_mask(part, settings)
        table = table if mask is None else table.filter(mask)
        is_captioned = pc.equal(table["status"], SUCCESS)
        planned = planned_table(part, settings)
        uris, digests = (
            table[name].filter(is_captioned).to_pylist() for name in ("uri", "sha256")
        )
        counts: Counter[str] = Counter()
        scratch = settings.folder.scratch()
        with (
            tempfile.TemporaryDirectory(dir=scratch) as place,
            tempfile.TemporaryFile(dir=scratch) as waiting,
        ):
            file = f"{place}/tar"
            with (
                tarfile.open(file, mode="w") as tar,
                Fetcher(settings.fetch, settings.trust) as fetcher,
            ):
                samples = _SamplesInOrder(tar, captioned_rows(part, settings), waiting)
                known = None if planned is None else planned.filter(is_captioned)
                for number, data in _pictures(uris, known, settings.source, fetcher):
                    if data is None:
                        counts["gone"] += 1
                    # A digest is missing in tables that raycap has not made itself.
                    elif digests[number] and _digest(data) != digests[number]:
                        counts["changed"] += 1
                        data = None
                    samples.add(number, data)
                    del data  # free its bytes before the next one comes
            settings.folder.put(self.target(part), file)
        return counts

    def remarks(self, counts: Mapping[str, int], settings: SinkSettings) -> list[str]:
        gone, changed = counts.get("gone", 0), counts.get("changed", 0)
        if not gone + changed:
            return []
        tars = settings.folder / self.name
        reasons = [f"{gone:,} cannot be fetched any more"] if gone else []
        reasons += [f"{changed:,} changed since they were captioned"] if changed else []
        return [
            f"{gone + changed:,} captioned picture(s) are not in {tars}: {', '.join(reasons)}. "
            f"When they are back, remove {tars} and give the same command again; --overwrite "
            "makes new captions for pictures that changed"
        ]


def _pictures(
    uris: Sequence[str], planned: pa.Table | None, source: Source | None, fetcher: Fetcher
) -> Iterator[tuple[int, bytes | None]]:
    """Number and bytes of each picture, in the order in which they arrive; None for one that is
    gone."""
    embedded = np.zeros(len(uris), bool)
    if planned is not None and source is not None:
        embedded = planned["embedded"].to_numpy()
        yield from _embedded_pictures(np.flatnonzero(embedded), planned, source)
    elsewhere = np.flatnonzero(~embedded).tolist()
    wanted = [uris[number] for number in elsewhere]
    for place, fetched in fetcher.fetch_each(wanted, BODIES_IN_MEMORY):
        yield elsewhere[place], None if fetched.error else fetched.data
        del fetched


def _embedded_pictures(
    numbers: NDArray[np.int64], planned: pa.Table, source: Source
) -> Iterator[tuple[int, bytes | None]]:
    for start in range(0, len(numbers), EMBEDDED_AT_ONCE):
        some = numbers[start : start + EMBEDDED_AT_ONCE]
        rows = planned.take(pa.array(some))
        try:
            found = source.embedded_pictures(rows)
        except (UserError, OSError):  # a file is gone, which not all of them need
            found = [_embedded_picture(rows.slice(row, 1), source) for row in range(len(rows))]
        yield from zip(some.tolist(), found, strict=True)


def _embedded_picture(row: pa.Table, source: Source) -> bytes | None:
    with contextlib.suppress(UserError, OSError):
        return source.embedded_pictures(row)[0]
    return None


class _SamplesInOrder:
    """Adds samples to a tar in the order of their rows. A picture that arrives early waits on
    disk."""

    def __init__(self, tar: tarfile.TarFile, rows: Iterator[Row], waiting: IO[bytes]) -> None:
        self._tar, self._rows, self._waiting = tar, rows, waiting
        self._places: dict[int, tuple[int, bytes, int] | None] = {}  # start, first bytes, size
        self._next = 0

    def add(self, number: int, picture: bytes | None) -> None:
        """None leaves the row out."""
        if picture is None:
            self._places[number] = None
        elif number == self._next:
            self._write(picture[:FIRST_BYTES], io.BytesIO(picture), len(picture))
        else:
            start = self._waiting.seek(0, io.SEEK_END)
            self._places[number] = (start, picture[:FIRST_BYTES], len(picture))
            self._waiting.write(picture)
        while self._next in self._places:
            place = self._places.pop(self._next)
            if place is None:
                next(self._rows)
                self._next += 1
            else:
                self._waiting.seek(place[0])
                self._write(place[1], self._waiting, place[2])
        if not self._places:
            self._waiting.truncate(0)

    def _write(self, first: bytes, picture: IO[bytes], size: int) -> None:
        row, name = next(self._rows), f"{self._next:06d}"
        for suffix, text in ((".json", json_line(row)), (".txt", row["caption"])):
            content = text.encode()
            _add_file(self._tar, name + suffix, io.BytesIO(content), len(content))
        _add_file(self._tar, name + picture_ending(row["uri"], first), picture, size)
        self._next += 1


def picture_ending(uri: str, first: bytes) -> str:
    """The ending of a picture's name if it is a usual one, otherwise that of its format."""
    from raycap.images.formats import picture_format  # Pillow, which --help does not need

    ending = PurePosixPath(name_of(uri)).suffix.lower()
    if ending in PICTURE_ENDINGS:
        return ending
    name = picture_format(first)
    return ENDINGS.get(name, f".{name or 'picture'}")


def _add_file(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    """Without time and owner: the same rows make the same tar."""
    about = tarfile.TarInfo(name)
    about.size = size
    tar.addfile(about, content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
