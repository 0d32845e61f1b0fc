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
from raycap.bulk import Bulk
from raycap.config import Config, dumps, part_to_plain
from raycap.refusal import Refusal
from raycap.runs import RunFolder, differences
from raycap.sources import Source
from raycap.sources.place import locate
from raycap.sources.splits import split_word
from raycap.stages.autoscaler import autoscales
from raycap.stages.bulk.publish import Parts
from raycap.stages.bulk.standing import Counts
from raycap.stages.bulk.todo import Todo
from raycap.stages.nodes import machines, makers
from raycap.terminal import printable
from raycap.training.store import cache_folder

RUN, FACTS = "run.json", "facts.json"
COMMONEST_REASONS = 5


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


@dataclass(frozen=True)
class Outcome:
    """What a run did, and what the table holds now."""

    made: Counts
    held: Counts
    seconds: float
    faults: Sequence[str] = ()  # each cost another pass over what the table lacked


def source_of(config: Config, act: str) -> Source:
    """The source, looked at before anything is started."""
    if config.source is None:
        raise Refusal(f"which pictures? Give a folder, a list or a dataset: raycap {act} SOURCE --out DIR")
    config.source.check()
    return config.source


def source_identity(source: Source, options: Bulk) -> dict[str, Any]:
    """The source's options, its path as every working directory would name it, and the split, if one is taken."""
    place = locate(source.path)
    here = place.filesystem is None and not place.exists()  # a glob, or a name in a hub
    told = part_to_plain("source", source) | {"path": source.path if here else place.uri}
    return told | ({"of_split": split_word(options.split)} if options.split else {})


def kept(work: Work, cache: str, option: str) -> Work:
    """The work in a folder of its own in the cache, where a later run of the same finds it."""
    if not cache and (machines() > 1 or autoscales()):
        raise Refusal(f"on several machines, say where they all find what is made: {option}, a folder they share")
    fingerprint = hashlib.sha256(json.dumps(work.identity, sort_keys=True).encode()).hexdigest()[:16]
    out = cache_folder(cache) / work.table / fingerprint
    return replace(work, options=replace(work.options, out=str(out)))


def identify(work: Work, folder: RunFolder) -> None:
    """Refuse a folder that holds other rows than these; mark a new one."""
    if wrong := strangeness(work, folder):
        raise Refusal(
            f"{folder} holds rows of another run ({'; '.join(wrong)}): give another --out, or --overwrite to "
            "make them anew"
        )
    if not folder.exists(RUN):
        folder.write_json(
            RUN, {"raycap": __version__, "act": work.act, "table": work.table, "identity": work.identity}
        )


def strangeness(work: Work, folder: RunFolder) -> list[str]:
    """What differs between the run that made the folder and this one."""
    found = folder.read_json(RUN)
    if found is None:
        return [f"{work.table} of unknown origin"] if folder.names(work.table) else []
    return differences(
        {"act": found.get("act"), **found.get("identity", {})},
        {"act": work.act, **json.loads(json.dumps(work.identity))},
    )


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
        "made_in_this_run": made.rows,
        "seconds": round(outcome.seconds, 1),
        "rows_per_second": round(made.rows / max(outcome.seconds, 1e-9), 2),
        "nodes": makers(made.makers, outcome.seconds),
        "passes_lost": list(outcome.faults),
        **more,
        "identity": work.identity,
        "options": part_to_plain(work.act, work.options),
        "config": dumps(work.config),
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
    }
    folder.write_json(FACTS, facts)


def summary(work: Work, folder: RunFolder, outcome: Outcome) -> str:
    """What a person reads at the end."""
    made, held = outcome.made, outcome.held
    rate = made.rows / max(outcome.seconds, 1e-9)
    lines = [
        f"{held.rows:,} rows, {held.failed:,} failed; {made.rows:,} made now, in {outcome.seconds:,.1f} s "
        f"({rate:,.1f} rows/s)",
        *reasons(held),
        f"written: {folder / work.table}",
    ]
    if held.failed:
        lines.append(
            "failed rows are in the table too, each with its status and reason; --retry failed tries them again"
        )
    return "\n".join(lines) + "\n"


def reasons(counts: Counts) -> list[str]:
    """The commonest reasons, a line each, safe to print."""
    return [
        f"  {rows:>9,}  {status}: {printable(reason)}"
        for (status, reason), rows in counts.reasons.most_common(COMMONEST_REASONS)
    ]
