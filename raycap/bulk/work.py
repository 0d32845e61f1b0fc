"""What an act wants made, how its run is told from others, and what is said of it at the end."""

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.data import Dataset

from raycap import __version__
from raycap.bulk.options import Bulk
from raycap.bulk.publish import Parts
from raycap.bulk.standing import Counts
from raycap.bulk.todo import Todo
from raycap.cluster.autoscaler import has_autoscaler
from raycap.cluster.nodes import count_machines, rows_by_node
from raycap.config import Config, dumps, part_to_plain
from raycap.errors import UserError
from raycap.fetch.hosts import host_lines
from raycap.images import Reading
from raycap.images.reading import LIMITS
from raycap.sources import Source
from raycap.sources.notes import line_of
from raycap.sources.splits import split_word
from raycap.storage import RunFolder, differences
from raycap.storage.location import locate
from raycap.terminal import printable
from raycap.training.store import cache_folder

RUN, FACTS = "run.json", "facts.json"
COMMONEST_REASONS = 5
# The defaults of --reading.formats in versions that accepted fewer.
FORMATS_OF_OLDER_VERSIONS = (("jpeg", "png", "webp", "gif", "bmp", "tiff", "heif", "avif"),)
HOSTS_IN_SUMMARY, HOSTS_IN_FACTS = 5, 100


@dataclass(frozen=True)
class Work:
    """A table to be made of a source."""

    act: str
    table: str
    config: Config
    source: Source
    options: Bulk
    identity: dict[str, Any]  # what decides the rows: a run that differs in it is another run
    parts: Parts
    stream: Callable[[Todo], Dataset]  # from manifest rows with tickets to finished rows
    also: Callable[[RunFolder], None] = lambda folder: None  # other forms, made of the whole table
    runs_model: bool = False  # then the precision decides the rows too: see `run_precision`


@dataclass(frozen=True)
class Outcome:
    """What a run did, and what the table holds now."""

    made: Counts
    held: Counts
    seconds: float
    faults: Sequence[str] = ()  # each cost another pass over what the table lacked
    left_out: Sequence[
        dict[str, Any]
    ] = ()  # what may be pictures and has no row, see `sources.notes`
    notes: Sequence[str] = ()  # other oddities of the source


def source_of(config: Config, act: str) -> Source:
    """The source, looked at before anything is started."""
    if config.source is None:
        raise UserError(
            f"which pictures? Give a folder, a list or a dataset: raycap {act} SOURCE --out DIR"
        )
    config.source.check()
    return config.source


def source_identity(source: Source, options: Bulk) -> dict[str, Any]:
    """The source's options, its path as every working directory would name it, and the split, if one is taken."""
    place = locate(source.path)
    here = place.filesystem is None and not place.exists()  # a glob, or a name in a hub
    told = part_to_plain("source", source) | {"path": source.path if here else place.uri}
    return told | ({"of_split": split_word(options.split)} if options.split else {})


def reading_identity(reading: Reading) -> dict[str, Any]:
    """The options of reading that decide the rows. How long a picture may take does not: with more, what failed can
    be tried again."""
    return {
        name: value
        for name, value in part_to_plain("reading", reading).items()
        if name not in LIMITS
    }


def kept(work: Work, cache: str, option: str) -> Work:
    """The work in a folder of its own in the cache, where a later run of the same finds it."""
    if not cache and (count_machines() > 1 or has_autoscaler()):
        raise UserError(
            f"on several machines, say where they all find what is made: {option}, a folder they share"
        )
    fingerprint = hashlib.sha256(json.dumps(work.identity, sort_keys=True).encode()).hexdigest()[
        :16
    ]
    out = cache_folder(cache) / work.table / fingerprint
    return replace(work, options=replace(work.options, out=str(out)))


def identify(work: Work, folder: RunFolder) -> None:
    """Refuse a folder that holds other rows than these; mark a new one."""
    check_same(work, folder)
    if not folder.exists(RUN):
        folder.write_json(
            RUN,
            {
                "raycap": __version__,
                "act": work.act,
                "table": work.table,
                "identity": work.identity,
            },
        )


def check_same(work: Work, folder: RunFolder) -> None:
    """Refuse a folder that holds other rows than these."""
    if wrong := strangeness(work, folder):
        raise UserError(
            f"{folder} holds rows of another run ({'; '.join(wrong)}): give another --out, or --overwrite to "
            "make them anew"
        )


def strangeness(work: Work, folder: RunFolder) -> list[str]:
    """What differs between the run that made the folder and this one."""
    found = folder.read_json(RUN)
    if found is None:
        return [f"{work.table} of unknown origin"] if folder.names(work.table) else []
    identity = found.get("identity", {})
    # More formats are accepted by default than once were. A run that took the default of then takes that of today.
    reading = identity.get("reading", {})
    if tuple(reading.get("formats", ())) in FORMATS_OF_OLDER_VERSIONS and accepts_all_formats(
        work
    ):
        identity = {
            **identity,
            "reading": {**reading, "formats": origin(work)["reading"]["formats"]},
        }
    return differences({"act": found.get("act"), **identity}, origin(work))


def accepts_all_formats(work: Work) -> bool:
    return bool(work.identity.get("reading", {}).get("formats") == list(Reading().formats))


def origin(work: Work) -> dict[str, Any]:
    """What tells rows of this run from those of any other, as JSON gives it back."""
    told: dict[str, Any] = json.loads(json.dumps({"act": work.act, **work.identity}))
    return told


def write_facts(work: Work, folder: RunFolder, outcome: Outcome, more: dict[str, Any]) -> None:
    """The last file of a run."""
    held, made = outcome.held, outcome.made
    facts = {
        "raycap": __version__,
        "act": work.act,
        "rows": held.rows,
        "failed": held.failed,
        "statuses": dict(held.statuses.most_common()),
        "reasons": [
            {"status": status, "reason": reason, "rows": rows}
            for (status, reason), rows in held.reasons.most_common(4 * COMMONEST_REASONS)
        ],
        "left_out": list(outcome.left_out),
        "notes": list(outcome.notes),
        "made_in_this_run": made.rows,
        "seconds": round(outcome.seconds, 1),
        "rows_per_second": round(made.rows / max(outcome.seconds, 1e-9), 2),
        "nodes": rows_by_node(made.makers, outcome.seconds),
        "hosts_in_this_run": made.hosts.report()[:HOSTS_IN_FACTS],
        "passes_lost": list(outcome.faults),
        **more,
        "identity": work.identity,
        "options": part_to_plain(work.act, work.options),
        "config": dumps(work.config),
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
    }
    folder.write_json(FACTS, facts)


def update_facts(folder: RunFolder, outcome: Outcome) -> None:
    """Of a run that had nothing to make: what the source leaves out may have changed since the last one."""
    found = folder.read_json(FACTS) or {}
    now = {"left_out": list(outcome.left_out), "notes": list(outcome.notes)}
    if {name: found.get(name, []) for name in now} != now:
        folder.write_json(FACTS, found | now)


def summary(work: Work, folder: RunFolder, outcome: Outcome) -> str:
    """What a person reads at the end."""
    made, held = outcome.made, outcome.held
    rate = made.rows / max(outcome.seconds, 1e-9)
    lines = [
        f"{held.rows:,} rows, {held.failed:,} failed; {made.rows:,} made now, in {outcome.seconds:,.1f} s "
        f"({rate:,.1f} rows/s)",
        *reasons(held),
        *noted_lines(outcome.left_out, outcome.notes),
        *host_lines(made.hosts.report(), HOSTS_IN_SUMMARY),
        f"written: {folder / work.table}",
    ]
    if held.failed:
        lines.append(
            "failed rows are in the table too, each with its status and reason; --retry failed tries them again"
        )
    return "\n".join(lines) + "\n"


def noted_lines(left_out: Sequence[dict[str, Any]], notes: Sequence[str]) -> list[str]:
    """What the source noted, safe to print."""
    without_row = (
        ["left out, without a row:", *(f"  {line_of(item)}" for item in left_out)]
        if left_out
        else []
    )
    noted = ["noted in the source:", *(f"  {line}" for line in notes)] if notes else []
    return [printable(line) for line in (*without_row, *noted)]


def reasons(counts: Counts) -> list[str]:
    """The commonest reasons, a line each, safe to print."""
    return [
        f"  {rows:>9,}  {status}: {printable(reason)}"
        for (status, reason), rows in counts.reasons.most_common(COMMONEST_REASONS)
    ]
