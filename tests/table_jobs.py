"""Table jobs for tests and campaigns: rows without pictures, captioners without torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raycap.bulk.job import TableJob, no_exports
from raycap.bulk.options import BulkOptions
from raycap.bulk.work import FileLayout
from raycap.fetch.trust import ONLY_WEB, Trust
from raycap.images import Square
from raycap.schema import CAPTIONS
from raycap.sources import SourceDefaults
from raycap.sources.manifest import Row, tables


class NoPictures(SourceDefaults):
    """A source whose rows have no pictures. Subclasses say which rows, in `tables`."""

    path = "numbers"
    trust: Trust = ONLY_WEB

    def check(self) -> None: ...


@dataclass(frozen=True)
class Numbers(NoPictures):
    """A source of so many rows."""

    rows: int

    def tables(self, notes: object = None) -> Iterator[pa.Table]:
        return tables((Row(str(number), "") for number in range(self.rows)), lambda: "nothing")


def captions_job(
    source: Any,
    options: BulkOptions,
    model: str,
    open_model: Callable[[BulkOptions, int], Any],
    export: Callable[..., None] = no_exports,
) -> TableJob:
    """A job of captions by a model with this name."""
    identity = {"captioner": model}
    return TableJob(
        command="caption",
        table="captions",
        source=source,
        options=options,
        identity=identity,
        layout=FileLayout(options.part_rows, CAPTIONS, (), identity),
        intake=Square(8),
        open_model=open_model,
        export=export,
    )
