"""A table job: what is to be made of which source, and what its run did."""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raycap.bulk.counts import RowCounts
from raycap.bulk.options import BulkOptions
from raycap.bulk.work import FileLayout, RowMaker, WorkOrder
from raycap.cluster import Cluster
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.finishing import Finishing
from raycap.images import Intake, Reading
from raycap.images.reading import LIMITS
from raycap.options import to_plain
from raycap.sources import SOURCES, Source
from raycap.sources.splits import split_word
from raycap.storage import RunFolder, cache_folder
from raycap.storage.location import locate

RUN, FACTS = "run.json", "facts.json"
# What captioners keep for each chunk until its rows are in the table, such as paid answers.
ANSWERS = "_answers"


# Runs a function with all these arguments, on the machines of the job; the answers in order.
Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]


def no_exports(folder: RunFolder, run: Run) -> None:
    pass


@dataclass(frozen=True)
class TableJob:
    """A table to be made of a source."""

    command: str  # which command asked for it: caption, extract
    table: str  # the name of its folder below --out
    source: Source
    options: BulkOptions
    identity: dict[str, Any]  # what determines the rows: a run that differs in it is another run
    layout: FileLayout
    intake: Intake  # the form in which the model takes pictures
    # Opens the model in a worker, with so many threads: what makes rows of loaded pictures.
    open_model: Callable[[Any, int], RowMaker]
    fetch: Fetch = field(default_factory=Fetch)
    reading: Reading = field(default_factory=Reading)
    cluster: Cluster = field(default_factory=Cluster)
    keeps_answers: bool = False  # in ANSWERS
    # Whether the process of the command holds the model: it travels from here to the workers.
    holds_model: bool = False
    runs_model: bool = False  # then the precision determines the rows too: see `precision`
    # The largest batch that fits into a worker's GPU; None: any does. It is asked where the model
    # will run, with the options of the run.
    largest_batch: Callable[[Any], int | None] | None = None
    pictures_per_second: float = 30.0  # of one worker, roughly
    export: Callable[[RunFolder, Run], None] = no_exports  # other forms of the whole table
    finishing: Finishing | None = None  # of captions
    config: str = ""  # all options as YAML, for facts.json

    def order(self, out: RunFolder, table: RunFolder) -> WorkOrder:
        """What its workers need to know, to write into this table."""
        return WorkOrder(
            out=out,
            table=table,
            source=self.source,
            fetch=self.fetch,
            reading=self.reading,
            intake=self.intake,
            batch=self.options.batch_size,
            layout=self.layout,
            open_model=functools.partial(self.open_model, self.options),
        )


@dataclass(frozen=True)
class RunResult:
    """What a run did, and what the table holds now."""

    made: RowCounts
    held: RowCounts
    seconds: float
    faults: Sequence[str] = ()  # each cost some chunks, which were made again
    left_out: Sequence[
        dict[str, Any]
    ] = ()  # what may be a picture and has no row: `sources.notes`
    notes: Sequence[str] = ()  # other oddities of the source


def source_identity(source: Source, split: str) -> dict[str, Any]:
    """The source's options, its path as every working directory would name it, and the split."""
    location = locate(source.path)
    # A glob, or a name in a hub, is not a path of this machine.
    is_path = location.filesystem is not None or location.exists()
    identity = to_plain(source, SOURCES)
    identity["path"] = location.uri if is_path else source.path
    if split:
        identity["of_split"] = split_word(split)
    return identity


def local_source(source: Source) -> dict[str, str]:
    """The source's path, which all machines must be able to see, and what it is; empty if it is
    not a path of this machine."""
    location = locate(source.path)
    is_here = location.filesystem is None and location.exists()
    return {location.path: "the source"} if is_here else {}


def reading_identity(reading: Reading) -> dict[str, Any]:
    """The options of reading that determine the rows. How long a picture may take does not: with
    more time, what failed can be tried again."""
    return {name: value for name, value in to_plain(reading).items() if name not in LIMITS}


def has_several_machines() -> bool:
    """Whether this process has joined a cluster of several machines, or one that may grow."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    from raycap.cluster.autoscaler import has_autoscaler  # Ray takes a second to load
    from raycap.cluster.nodes import count_machines

    return count_machines() > 1 or has_autoscaler()


def in_cache(job: TableJob, cache: str, option: str) -> TableJob:
    """The job in a folder of the cache that a later run of the same job finds."""
    if not cache and has_several_machines():
        raise UserError(
            "on several machines, say where they all find what is made: "
            f"{option}, a folder they share"
        )
    identity = json.dumps(job.identity, sort_keys=True).encode()
    out = cache_folder(cache) / job.table / hashlib.sha256(identity).hexdigest()[:16]
    return replace(job, options=replace(job.options, out=str(out)))
