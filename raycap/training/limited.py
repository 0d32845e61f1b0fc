"""The first pictures of each split, for a run that only tries its options (`train.limit`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycap.fetch.trust import Trust
from raycap.sources import Notes, Source, SourceDefaults
from raycap.training.options import Train


def limited(source: Source, options: Train) -> Source:
    """The source, or the part of it that `train.limit` leaves."""
    if options.limit is None:
        return source
    splits = (*options.training_splits, options.validation_split)
    return FirstPictures(source, splits, options.limit)


@dataclass(frozen=True)
class FirstPictures(SourceDefaults):
    """The first `most` pictures with captions of each of these splits of a source."""

    whole: Any  # a Source
    splits: tuple[str, ...]
    most: int

    @property
    def path(self) -> str:
        path: str = self.whole.path
        return path

    @property
    def trust(self) -> Trust:
        trust: Trust = self.whole.trust
        return trust

    @property
    def names_urls(self) -> bool:
        names_urls: bool = self.whole.names_urls
        return names_urls

    def check(self) -> None:
        self.whole.check()

    def tables(self, notes: Notes | None = None) -> Iterator[pa.Table]:
        left = dict.fromkeys(self.splits, self.most)
        for table in self.whole.tables(notes):
            lengths = pc.list_value_length(table["references"]).fill_null(0)
            usable = pc.and_(pc.greater(lengths, 0), pc.equal(table["error"], ""))
            chosen: list[np.ndarray] = []
            for split in self.splits:
                fits = pc.and_(usable, pc.equal(table["split"], split)).fill_null(False)
                rows = np.flatnonzero(fits.to_numpy())[: left[split]]
                left[split] -= len(rows)
                chosen.append(rows)
            yield table.take(np.sort(np.concatenate(chosen)))
            if not any(left.values()):
                return

    def embedded_pictures(self, rows: pa.Table) -> Any:
        return self.whole.embedded_pictures(rows)
