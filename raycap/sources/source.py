"""What a source is: options that say where pictures are, and the manifest rows that it gives."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Protocol

from raycap.errors import UserError
from raycap.fetch.trust import Trust
from raycap.sources.notes import Notes
from raycap.storage.location import Location

if TYPE_CHECKING:
    import pyarrow as pa


# What the key column of a unit holds: keys that are in no other unit; names that may occur again,
# there and elsewhere, and get a number then; keys that must not occur again.
UnitKeys = Literal["unique", "named", "given"]


class Source(Protocol):
    """What every source can do. It holds options only, so it can be sent to other processes."""

    @property
    def path(self) -> str:
        """What the user gave: a folder, file, URI or URL."""

    @property
    def trust(self) -> Trust:
        """The local paths and stores that its rows may name: its own folder or bucket."""

    @property
    def names_urls(self) -> bool:
        """Whether most rows are web addresses, which one task fetches many at a time."""

    @property
    def carried(self) -> tuple[str, ...]:
        """The user's own columns, which follow those of the manifest."""

    def check(self) -> None:
        """Raises UserError early for what cannot be read; cheap."""

    def own_columns(self) -> "Mapping[str, pa.DataType | None]":
        """The columns of the user's own table that --only may compare, carried or not, with their
        types; None in formats without types."""

    def comparing(self, names: Sequence[str], lists: Sequence[str]) -> "Source":
        """The source with these own columns behind those of its manifest, under the names that
        `compared` gives them. `lists` are those that hold lists."""

    def tables(self, notes: Notes | None = None) -> "Iterator[pa.Table]":
        """Yields manifest rows (with the carried columns): first 64, then up to 1,000 at a time.

        The order stays the same as long as the files do. Keys are unique, and stay when rows are
        added. A picture that cannot be used is a row with its `error`; what has no key is added to
        `notes`, which are complete when the last table was yielded.
        """

    def units(self) -> tuple[str, ...]:
        """Names of parts that are listed at the same time, in the order of their rows; `("",)` if
        the source is listed as a whole."""

    def units_tell_changes(self, units: Sequence[str]) -> bool:
        """Whether the names of these units would be others if their rows were."""

    @property
    def unit_keys(self) -> UnitKeys:
        """What the keys of units are."""

    @property
    def key_word(self) -> str:
        """What names that get numbers are, such as "URL"."""

    def tables_of_unit(self, unit: str, notes: Notes) -> "Iterator[pa.Table]":
        """The manifest rows of one of `units`, which may be none."""

    def refuse_repeated(self, key: str) -> NoReturn:
        """Raises UserError that says where a key, which must not, occurs twice."""

    def embedded_pictures(self, rows: "pa.Table") -> "Sequence[bytes | None]":
        """The bytes of pictures that the source itself holds, for manifest rows that it gave
        without them."""


def compared(name: str) -> str:
    """The name of a user's own column while --only looks at it."""
    return f"only:{name}"


class SourceDefaults:
    """What most sources have in common. A source overrides what differs."""

    # The names of files by which a folder is known to be such a dataset.
    folder_files: ClassVar[re.Pattern[str] | None] = None

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Whether a path or URI can only be for this source; nothing is opened."""
        return False

    @classmethod
    def recognises(cls, file: Location) -> bool:
        """Whether the file, by its name and first lines, is one for this source."""
        return False

    @classmethod
    def recognises_in_folder(cls, file: Location) -> bool:
        """Whether a file with one of the names `folder_files` makes its folder such a dataset."""
        return True

    @property
    def names_urls(self) -> bool:
        return False

    @property
    def carried(self) -> tuple[str, ...]:
        return ()

    def own_columns(self) -> "Mapping[str, pa.DataType | None]":
        return dict.fromkeys(self.carried)

    def comparing(self, names: Sequence[str], lists: Sequence[str]) -> Any:
        return self

    def units(self) -> tuple[str, ...]:
        return ("",)

    def units_tell_changes(self, units: Sequence[str]) -> bool:
        return False

    @property
    def unit_keys(self) -> UnitKeys:
        return "unique"

    @property
    def key_word(self) -> str:
        return "name"

    def refuse_repeated(self, key: str) -> NoReturn:
        raise UserError(f"the key {key!r} occurs twice")

    def tables_of_unit(self, unit: str, notes: Notes) -> "Iterator[pa.Table]":
        found: Iterator[pa.Table] = self.tables(notes)  # type: ignore[attr-defined]
        return found

    def embedded_pictures(self, rows: "pa.Table") -> "Sequence[bytes | None]":
        """Looks through the whole source. A large one knows better where its pictures are."""
        import pyarrow.compute as pc  # here, so that `raycap --help` stays quick

        wanted: list[str] = rows["key"].to_pylist()
        found: dict[str, bytes | None] = {}
        for table in self.tables():  # type: ignore[attr-defined]
            some = table.filter(pc.is_in(table["key"], rows["key"].combine_chunks()))
            found |= zip(some["key"].to_pylist(), some["bytes"].to_pylist(), strict=True)
            if len(found) == len(wanted):
                break
        return [found.get(key) for key in wanted]
