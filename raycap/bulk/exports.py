"""--also: writes a table in other formats, and updates them when the table changes.

A format is written part by part. For each part that is written there is a small JSON file, its
mark. One more file, _complete.json, says from which parts the whole format was made. If a run is
killed, the marks tell the next run which parts are missing. Formats that an earlier run has made
are updated by every run, whether it asks for them or not.

_only.json holds the --also-only of a format. A run that asks for the format with another one
removes what was written, and writes it again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from raycap.bulk.job import Run
from raycap.bulk.plan import read_shard
from raycap.bulk.work import ROWS
from raycap.sinks import ALL_SINKS, Sink, SinkSettings, write_part
from raycap.storage import RunFolder
from raycap.storage.folder import STAGED
from raycap.terminal import write_err

# The file that says that a format is complete, and from which parts it was made.
COMPLETE = "_complete.json"
# The file that says which rows a format has, if not all.
ONLY = "_only.json"
PART = "part-"  # how the names of a table's files begin
READ_AT_ONCE = 16


def write_exports(
    folder: RunFolder, run: Run, table: str, names: Sequence[str], settings: SinkSettings
) -> None:
    """Write the formats with these names, and update those of earlier runs."""
    settings = replace(settings, planned=planned_rows)
    parts = {PurePosixPath(part).stem: part for part in folder.names(table)}
    for each in _formats(names, settings):
        each.update(parts, run)
    folder.remove(STAGED)


def planned_rows(folder: RunFolder, part: str) -> Iterator[pa.Table]:
    """The rows of the plan from which a part of the table was made, in the order of the part."""
    metadata = folder.reading(part, lambda file: pq.read_schema(file).metadata)
    held: tuple[tuple[int, int, int], pa.Table] | None = None
    for operation, unit, shard, start, stop in json.loads(metadata[ROWS.encode()]):
        name = (operation, unit, shard)
        if held is None or held[0] != name:
            held = (name, read_shard(folder, *name))
        yield held[1].slice(start, stop - start)


def _formats(names: Sequence[str], settings: SinkSettings) -> "Iterator[_Format]":
    """All formats. Text files in the run's folder and text files beside the pictures count as
    two."""
    for sink in ALL_SINKS:
        places = [replace(settings, beside=beside) for beside in (False, True)]
        for each in {sink.marks(place): place for place in places}.values():
            is_requested = sink.name in names and sink.marks(each) == sink.marks(settings)
            yield _Format(sink, each, is_requested)


@dataclass(frozen=True)
class _Format:
    """One format with its settings, and whether this run asks for it."""

    sink: Sink
    settings: SinkSettings
    is_requested: bool

    def update(self, parts: dict[str, str], run: Run) -> None:
        """Remove what was written for parts that are not in the table any more, and write what is
        missing. `parts` are the files of the table, by their names without the extension."""
        sink, folder = self.sink, self.settings.folder
        recorded = (folder.read_json(self._only) or {}).get("only", "")
        settings = self.settings
        is_other = self.is_requested and settings.only != recorded
        if not self.is_requested:
            settings = replace(settings, only=recorded)
        marks, targets = self._existing_files()
        known = {PurePosixPath(name).stem for name in (*marks, *targets)}
        stale = sorted(
            name for name in known if name.startswith(PART) and (is_other or name not in parts)
        )
        if stale:
            if sink.joined:
                folder.remove(sink.joined)
            list(run(sink.forget, [(name, settings) for name in stale]))
        if is_other:  # after what had other rows is gone
            folder.remove(self._complete)
            folder.remove(self._only)
            if settings.only:
                folder.write_json(self._only, {"only": settings.only})
            marks, targets = set(), set()
        complete = folder.read_json(self._complete)
        if not self.is_requested and complete is None:
            return

        state = {"parts": hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()}
        written = {
            stem
            for stem, part in parts.items()
            if sink.mark(part, settings) in marks
            and (not sink.ending or sink.target(part) in targets)
        }
        counts = self._counts([parts[stem] for stem in sorted(written)])
        again = {part for part, found in counts.items() if not sink.is_final(found, settings)}
        missing = [
            part for stem, part in sorted(parts.items()) if stem not in written or part in again
        ]
        if missing and not self.is_requested:
            where = folder / sink.marks(settings)
            write_err(
                f"raycap: {sink.name}, which an earlier run has made, follows the table (remove "
                f"{where} if it should not)\n"
            )
        made = run(write_part, [(sink, part, settings) for part in missing])
        counts |= zip(missing, made, strict=True)
        is_joined = not sink.joined or folder.exists(sink.joined)
        if missing or stale or complete != state or not is_joined:
            sink.finish(folder)
            folder.write_json(self._complete, state)
        if self.is_requested or missing:
            total: Counter[str] = Counter()
            for found in counts.values():
                total.update(found)
            for line in sink.remarks(total, settings):
                write_err(f"raycap: {line}\n")

    @property
    def _complete(self) -> str:
        return f"{self.sink.marks(self.settings)}/{COMPLETE}"

    @property
    def _only(self) -> str:
        return f"{self.sink.marks(self.settings)}/{ONLY}"

    def _existing_files(self) -> tuple[set[str], set[str]]:
        """The files in the folder of marks, and the files that hold parts."""
        sink, folder = self.sink, self.settings.folder
        marks = set(folder.names(sink.marks(self.settings)))
        return marks, set(folder.names(sink.name)) if sink.ending else set()

    def _counts(self, parts: Sequence[str]) -> dict[str, dict[str, int]]:
        """The counts in the marks of these parts."""
        folder, settings = self.settings.folder, self.settings
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            found = pool.map(lambda part: folder.read_json(self.sink.mark(part, settings)), parts)
            return {part: marked or {} for part, marked in zip(parts, found, strict=True)}
