"""--also: the other forms of a table, made of its files, and made again when these change.

Each form has a mark for each part of the table that is written, and one that says of which parts
the whole form was made. A run that was killed leaves marks for what is there, and the next run
makes the rest. Forms that an earlier run has made follow the table, also in runs that do not ask
for them.
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

# Says that a form is complete, and of which parts it was made.
COMPLETE = "_complete.json"
PART = "part-"  # how the names of a table's files begin
READ_AT_ONCE = 16


def write_exports(
    folder: RunFolder, run: Run, table: str, names: Sequence[str], settings: SinkSettings
) -> None:
    """Bring the forms with these names up to the table, and those of earlier runs."""
    settings = replace(settings, planned=planned_rows)
    parts = {PurePosixPath(part).stem: part for part in folder.names(table)}
    for form in _forms(names, settings):
        form.follow(parts, run)
    folder.remove(STAGED)


def planned_rows(folder: RunFolder, part: str) -> Iterator[pa.Table]:
    """The rows of the plan that a file of the table is made of, in its order."""
    metadata = folder.reading(part, lambda file: pq.read_schema(file).metadata)
    held: tuple[tuple[int, int, int], pa.Table] | None = None
    for operation, unit, shard, start, stop in json.loads(metadata[ROWS.encode()]):
        name = (operation, unit, shard)
        if held is None or held[0] != name:
            held = (name, read_shard(folder, *name))
        yield held[1].slice(start, stop - start)


def _forms(names: Sequence[str], settings: SinkSettings) -> "Iterator[_Form]":
    """All forms that there are: text files beside the pictures are one of their own."""
    for sink in ALL_SINKS:
        places = [replace(settings, beside=beside) for beside in (False, True)]
        for each in {sink.marks(place): place for place in places}.values():
            is_asked = sink.name in names and sink.marks(each) == sink.marks(settings)
            yield _Form(sink, each, is_asked)


@dataclass(frozen=True)
class _Form:
    sink: Sink
    settings: SinkSettings
    is_asked: bool

    def follow(self, parts: dict[str, str], run: Run) -> None:
        """Remove what was made of other parts, and make what is missing. `parts` are the files of
        the table, by their names without an ending."""
        sink, settings, folder = self.sink, self.settings, self.settings.folder
        marks, targets = self._present()
        known = {PurePosixPath(name).stem for name in (*marks, *targets)}
        stale = sorted(name for name in known - parts.keys() if name.startswith(PART))
        if stale:
            if sink.joined:
                folder.remove(sink.joined)
            list(run(sink.forget, [(name, settings) for name in stale]))
        complete = folder.read_json(self._complete)
        if not self.is_asked and complete is None:
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
        if missing and not self.is_asked:
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
        if self.is_asked or missing:
            total: Counter[str] = Counter()
            for found in counts.values():
                total.update(found)
            for line in sink.remarks(total, settings):
                write_err(f"raycap: {line}\n")

    @property
    def _complete(self) -> str:
        return f"{self.sink.marks(self.settings)}/{COMPLETE}"

    def _present(self) -> tuple[set[str], set[str]]:
        """The marks of parts, with what lies beside them, and the files that hold parts."""
        sink, folder = self.sink, self.settings.folder
        marks = set(folder.names(sink.marks(self.settings)))
        return marks, set(folder.names(sink.name)) if sink.ending else set()

    def _counts(self, parts: Sequence[str]) -> dict[str, dict[str, int]]:
        """What the marks of these parts say."""
        folder, settings = self.settings.folder, self.settings
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            found = pool.map(lambda part: folder.read_json(self.sink.mark(part, settings)), parts)
            return {part: marked or {} for part, marked in zip(parts, found, strict=True)}
