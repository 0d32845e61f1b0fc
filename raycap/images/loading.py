"""Fetch and read: from a URI, or from bytes, to pixels or the reason why there are none."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raycap.fetch import Fetched, Fetcher
from raycap.images.guard import read_guarded, read_together
from raycap.images.intake import Intake
from raycap.images.reading import Picture, Reading
from raycap.schema import FAILED_TO_DECODE, FAILED_TO_FETCH, SUCCESS

Read = Callable[[bytes, Reading, Intake | None], Picture]


@dataclass(frozen=True)
class LoadedPicture:
    """A picture with its pixels, or with the status and the reason why it has none."""

    status: str
    error: str
    pixels: NDArray[np.uint8] | None
    """As the intake says: [S, S, 3], [H, W, 3], or the bytes of a file [N]."""
    format: str
    width: int
    """As a viewer shows it; 0 if it could not be read."""
    height: int
    sha256: str
    """Of its bytes; "" if they could not be fetched."""
    fetched: Fetched
    """The bytes, and what it took to get them."""


def load_pictures(
    items: Iterable[str | bytes | Fetched],
    fetcher: Fetcher,
    reading: Reading,
    intake: Intake | None,
    read: Read = read_guarded,
    patience: float | None = None,
) -> Iterator[tuple[int, LoadedPicture]]:
    """Each item's number and picture, in the order in which the bytes arrive.

    An item is a URI or path, the picture's bytes, or a `Fetched` (such as a reason why it cannot
    be fetched). Memory holds a few pictures only, if the caller keeps none. When no bytes have
    arrived for `patience` seconds, all others have no status: they are not fetched here.
    """

    def loaded(fetched: Fetched) -> LoadedPicture:
        if fetched.rest or fetched.error:
            return _not_there(fetched)
        return _loaded(fetched, read(fetched.data, reading, intake))

    uris: dict[int, str] = {}
    for number, item in enumerate(items):
        if isinstance(item, str):
            uris[number] = item
        else:
            yield number, loaded(item if isinstance(item, Fetched) else Fetched(item, ""))
    numbers = list(uris)
    for place, fetched in fetcher.fetch_each(list(uris.values()), patience=patience):
        yield numbers[place], loaded(fetched)
        del fetched  # the next body is on its way


def read_fetched(
    fetched: Sequence[Fetched], reading: Reading, intake: Intake | None
) -> list[LoadedPicture]:
    """Pictures that have arrived, read in a child process."""
    pictures = iter(
        read_together([each.data for each in fetched if not each.error], reading, intake)
    )
    return [_not_there(each) if each.error else _loaded(each, next(pictures)) for each in fetched]


def _not_there(fetched: Fetched) -> LoadedPicture:
    status = FAILED_TO_FETCH if fetched.error else ""
    return LoadedPicture(status, fetched.error, None, "", 0, 0, "", fetched)


def _loaded(fetched: Fetched, picture: Picture) -> LoadedPicture:
    status = FAILED_TO_DECODE if picture.error else SUCCESS
    digest = hashlib.sha256(fetched.data).hexdigest()
    size = (picture.width, picture.height)
    return LoadedPicture(
        status, picture.error, picture.pixels, picture.format, *size, digest, fetched
    )


def load_in_order(
    items: Sequence[str | bytes | Fetched],
    fetcher: Fetcher,
    reading: Reading,
    intake: Intake | None,
    keep_bytes: bool = False,
) -> list[LoadedPicture]:
    """All of them, in the order of the items; without their bytes, unless asked to keep them."""
    found: dict[int, LoadedPicture] = {}
    for number, picture in load_pictures(items, fetcher, reading, intake):
        if not keep_bytes:
            picture = replace(picture, fetched=replace(picture.fetched, data=b""))
        found[number] = picture
        del picture
    return [found[number] for number in range(len(items))]
