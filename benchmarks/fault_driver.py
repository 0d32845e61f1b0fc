"""The driver of a table job as the fault campaign runs it: in a process of its own, with a model
that says its name and the key, and with a fault at one of its steps.

A step is what changes the output: a file is written, renamed or removed, or a commit is made.
"""

import contextlib
import functools
import importlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from raycap.bulk import pictures, scheduler
from raycap.bulk.exports import write_exports
from raycap.bulk.options import BulkOptions
from raycap.bulk.run import run_job
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.fetch.trust import ONLY_WEB, Trust
from raycap.images.reading import read_picture
from raycap.schema import CAPTIONS, FAILED_TO_CAPTION, SUCCESS
from raycap.sinks import SINKS, SinkSettings
from raycap.sources import Notes, Source, SourceDefaults
from raycap.sources.manifest import Row, tables
from raycap.sources.source import UnitKeys
from raycap.storage import RunFolder, lease
from raycap.storage.lease import Lease

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from table_jobs import captions_job  # type: ignore[import-not-found]

# Loaded once, for all drivers.
for module in ("aiobotocore.session", "s3fs", "adlfs"):
    with contextlib.suppress(ImportError):
        importlib.import_module(module)

BATCH, PART_ROWS = 4, 15
# The model takes so long for a batch, so that others can come in between.
SECONDS_PER_BATCH = 0.03
REFUSED = 2  # the exit code of a run that ended with a UserError


@dataclass(frozen=True)
class Names(SourceDefaults):
    """Units of rows whose names occur again in other units. All have the same picture."""

    picture: bytes
    sizes: tuple[int, ...]
    path: str = "names"
    trust: Trust = ONLY_WEB

    def check(self) -> None: ...

    @property
    def unit_keys(self) -> UnitKeys:
        return "named"

    def units(self) -> tuple[str, ...]:
        return tuple(map(str, range(len(self.sizes))))

    def tables(self, notes: Notes | None = None) -> Iterator[pa.Table]:
        for unit in self.units():
            yield from self.tables_of_unit(unit, notes or Notes())

    def tables_of_unit(self, unit: str, notes: Notes) -> Iterator[pa.Table]:
        numbers = range(self.sizes[int(unit)])
        rows = (Row(f"{number}.png", "", picture=self.picture) for number in numbers)
        return tables(rows, None)

    def embedded_pictures(self, rows: pa.Table) -> Sequence[bytes | None]:
        return [self.picture] * len(rows)


@dataclass(frozen=True)
class Command:
    """`raycap caption SOURCE --model MODEL ...`."""

    source: Source
    model: str = "A"
    retry: bool = False
    overwrite: bool = False
    fails: bool = False  # the model fails for some pictures
    also: bool = False  # all other formats too

    def run(self, out: str) -> int:
        options = BulkOptions(
            out=out,
            batch=BATCH,
            part_rows=PART_ROWS,
            retry="failed" if self.retry else "",
            overwrite=self.overwrite,
        )
        settings = SinkSettings(
            RunFolder(out), "skip", False, Fetch(), self.source.trust, self.source
        )
        names = tuple(SINKS) if self.also else ()
        opens = functools.partial(open_model, self.model, self.fails)
        export = functools.partial(write_exports, table="captions", names=names, settings=settings)
        return run_job(captions_job(self.source, options, self.model, opens, export), {})


def open_model(
    model: str, fails: bool, options: BulkOptions, threads: int
) -> Callable[[pa.Table], pa.Table]:
    def caption(table: pa.Table) -> pa.Table:
        time.sleep(SECONDS_PER_BATCH)
        rows = []
        for row in table.drop_columns(["pixels"]).to_pylist():
            text, error = answer(model, fails, row["key"])
            if row["status"] == SUCCESS and error:
                row |= {"status": FAILED_TO_CAPTION, "error_message": error}
            said = text if row["status"] == SUCCESS else ""
            made: dict[str, Any] = {"caption": said, "score": None, "alternatives": []}
            rows.append({**row, **made, "raw_caption": None, "flags": [], "attempt": 0})
        return pa.Table.from_pylist(rows).select(CAPTIONS.names).cast(CAPTIONS)

    return caption


def answer(model: str, fails: bool, key: str) -> tuple[str, str]:
    """What the model says of a picture, and the error if it fails."""
    number = re.search(r"(\d+)\.png", key)
    if fails and number and int(number[1]) % 5 == 2:
        return "", "tired"
    return f"{model} {key}", ""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a driver."""

    step: int = -1  # before this one, it gets the signal
    signal: int = signal.SIGKILL
    host: str = ""  # it runs on another machine of this name
    clock: float = 0.0  # seconds that its clock is ahead
    lease_seconds: float = 0.0  # after which a lease is dead
    ignores_leases: bool = False


def drive(
    command: Command,
    out: str,
    fault: Fault,
    steps_file: str,
    log_file: str,
    environment: Mapping[str, str],
) -> None:
    """What the process does. Each step is noted in `steps_file`."""
    os.environ |= environment
    log = os.open(log_file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    scheduler.SECONDS_BETWEEN_COMMITS = 0.1
    # Without a child process, which takes as long as the rest of the run.
    pictures._reader = lambda: read_picture  # type: ignore[assignment,return-value]
    _disturb(fault)
    _count_steps(fault, out, steps_file)
    try:
        code = command.run(out)
    except UserError as error:
        print(f"refused: {error}", flush=True)
        code = REFUSED
    sys.stdout.flush()
    # Threads of stores may still be there.
    os._exit(code)


def _disturb(fault: Fault) -> None:
    if fault.host:
        socket.gethostname = lambda: fault.host
    if fault.clock:
        clock = time.time
        time.time = lambda: clock() + fault.clock
    if fault.lease_seconds:
        lease.SECONDS_TILL_DEAD = fault.lease_seconds
        lease.SECONDS_BETWEEN_RENEWALS = fault.lease_seconds / 4
    if fault.ignores_leases:
        lease._is_alive = lambda found: False  # type: ignore[assignment]
        Lease.check = lambda self: None  # type: ignore[method-assign]


def _count_steps(fault: Fault, out: str, steps_file: str) -> None:
    notes = os.open(steps_file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    count, one_at_a_time = 0, threading.Lock()

    def note(label: str) -> None:
        nonlocal count
        with one_at_a_time:
            os.write(notes, f"{label}\n".encode())
            if count == fault.step:
                os.kill(os.getpid(), fault.signal)
            count += 1

    def counted(owner: type, name: str, label: Callable[..., str]) -> None:
        method = getattr(owner, name)

        def step(self: Any, *arguments: Any, **named: Any) -> Any:
            note(f"{name} {label(self, *arguments)}")
            return method(self, *arguments, **named)

        setattr(owner, name, step)

    def file(self: RunFolder, name: str, *more: Any) -> str:
        path = f"{self.uri}/{name}".removeprefix(f"{out}/")
        return re.sub("[0-9a-f]{12,}", "X", path)

    for name in ("create", "stage", "put", "remove", "remove_file"):
        counted(RunFolder, name, file)
    counted(RunFolder, "rename", lambda self, old, new: file(self, new))
    counted(DeltaTable, "create_write_transaction", lambda self, *more: "commit")
