"""Disturb table jobs at every step, on every store, and compare their tables with the source.

    python benchmarks/faults.py --results faults.jsonl             # a disk and moto
    python benchmarks/faults.py --results faults.jsonl --stores local --operations retry --limit 5
    python benchmarks/faults_on_ray.py --kills 24                  # whole commands, on Ray

Each case is an operation (a retry, for example), a store and a fault: kill -9 before a step or at
some moment, two drivers at once, a driver that is stopped and wakes up after another one has
taken over, clocks that are an hour apart. While drivers work, the table is read as any reader of
Delta tables would. Afterwards the same command runs once more, and everything is compared. A line
of the results is a case; cases that are in the file are not run again.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
from fault_driver import REFUSED, Command, Fault, Names, answer, drive
from fault_stores import Store, azurite_container, moto_bucket
from PIL import Image

from raycap.bulk.table import OutputTable
from raycap.schema import SUCCESS
from raycap.sources import Folder
from raycap.storage import RunFolder

PICTURES, MORE_PICTURES = 44, 56
HOUR = 3600.0
# A lease of these drivers is dead after so many seconds; those of the real length sleep longer.
LEASE_SECONDS, REAL_SLEEP = 1.0, 120.0
SECONDS_OF_A_CASE = 300.0
STORES = ("local", "s3", "azure")
# Which steps belong to these operations, of all steps of a first run.
STEPS: dict[str, Callable[[Any, Any], bool]] = {
    "planning": lambda step, steps: "_plan" in step,
    "join": lambda step, steps: step in steps[_first(steps, "part-") :],
    "exports": lambda step, steps: any(
        f" {name}" in step for name in ("txt", "jsonl", "webdataset", "imagefolder", "metadata")
    ),
}
OPERATIONS = ("first", "resume", "append", "retry", "overwrite", "join", "exports", "planning")
# How many cases of each operation, by store: kills before steps, kills at any moment, two drivers
# at once, drivers that sleep, clocks that are wrong.
CASES: dict[str, dict[str, float]] = {
    "local": {"step": 12, "random": 5, "two": 4, "asleep": 1, "clock": 1},
    "s3": {"step": 3, "random": 1, "two": 1, "asleep": 0.5, "clock": 0.5},
    "azure": {"step": 2, "random": 0.5, "two": 0.5, "asleep": 0.5, "clock": 0.5},
}


@dataclass(frozen=True)
class Case:
    """One disturbed operation."""

    store: str
    operation: str
    fault: str
    number: int  # among those that are alike

    def __str__(self) -> str:
        return f"{self.store} {self.operation} {self.fault} {self.number}"


@dataclass
class Findings:
    """What was wrong. All lists are empty if nothing was."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    false_facts: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)  # files left behind, exports, odd ends


def cases(stores: Sequence[str], operations: Sequence[str]) -> Iterator[Case]:
    for store in stores:
        for fault in ("step", "random", "two", "asleep", "clock"):
            for place, operation in enumerate(operations):
                count = CASES[store][fault]
                if count < 1:  # every second operation
                    count = int(place % 2 == 0 and count > 0)
                for number in range(int(count)):
                    yield Case(store, operation, fault, number)
    if "local" in stores:
        yield from (Case("local", name, "asleep 120 s", 0) for name in ("first", "retry"))


class Campaign:
    """The cases on one store."""

    def __init__(self, name: str, store: Store, folder: Path) -> None:
        self.name, self.store, self.folder = name, store, folder
        self._filesystem = fsspec.core.url_to_fs(store.uri)[0]
        # The server that forks drivers has loaded all they need. It finds modules only here.
        here = str(Path(__file__).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join((here, os.environ.get("PYTHONPATH", "")))
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["fault_driver"])
        self._count = 0
        self._steps: dict[str, list[str]] = {}
        picture = folder / "one.png"
        Image.new("RGB", (9, 9)).save(picture)
        photos = folder / "photos"
        more = folder / "more"
        for number in range(MORE_PICTURES):
            content = b"broken" if number == 7 else picture.read_bytes()
            for source in (photos, more) if number < PICTURES else (more,):
                place = source / ("", "a", "b", "c")[number % 4]
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{number}.png").write_bytes(content)
        names = Names(picture.read_bytes(), (17, 15, 3, 9))
        first = Command(Folder(str(photos)), fails=True)
        self.commands = {
            "first": first,
            "resume": first,
            "append": replace(first, source=Folder(str(more))),
            "retry": replace(first, fails=False, retry=True),
            "overwrite": replace(first, model="B", overwrite=True),
            "join": first,
            "exports": replace(first, also=True),
            "planning": replace(first, source=names),
        }

    # Processes.

    def start(self, command: Command, out: str, fault: Fault) -> Any:
        self._count += 1
        steps, log = (str(self.folder / f"{self._count}.{end}") for end in ("steps", "log"))
        process = self._processes.Process(
            target=drive, args=(command, out, fault, steps, log, dict(self.store.environment))
        )
        process.steps, process.log = Path(steps), Path(log)  # type: ignore[attr-defined]
        process.start()
        return process

    def run(self, command: Command, out: str, fault: Fault | None = None) -> int:
        process = self.start(command, out, fault or Fault())
        process.join(SECONDS_OF_A_CASE)
        code = process.exitcode
        if code is None or code not in (0, 1, REFUSED, -9):
            process.kill()
            raise RuntimeError(f"a run ended with {code}: {process.log.read_text()[-3000:]}")
        self._last = process
        return int(code)

    def last_words(self) -> str:
        return str(self._last.log.read_text()[-1000:])

    # Tables to start from.

    @functools.cache  # noqa: B019 - a campaign lives as long as the program
    def template(self, operation: str) -> str | None:
        """An output as it is before an operation; None for none."""
        if operation in ("first", "join", "exports", "planning"):
            return None
        out = f"{self.store.uri}/before-{operation}"
        first = self.commands["first"]
        if operation == "resume":
            steps = self.steps("first")
            commits = [place for place, step in enumerate(steps) if "commit" in step]
            self.run(first, out, Fault(step=commits[len(commits) // 2]))
        else:
            assert self.run(first, out) == 1, self.last_words()
        return out

    def steps(self, operation: str) -> list[str]:
        """The steps of an undisturbed run."""
        if operation not in self._steps:
            out = self.new_output(operation)
            assert self.run(self.commands[operation], out) in (0, 1), self.last_words()
            self._steps[operation] = self._last.steps.read_text().splitlines()
            self.remove(out)
        return self._steps[operation]

    def new_output(self, operation: str) -> str:
        template = self.template(operation)
        self._count += 1
        out = f"{self.store.uri}/run-{self._count}"
        if template is not None and self.name == "local":
            shutil.copytree(template, out)
        elif template is not None:
            self._filesystem.copy(f"{template}/", f"{out}/", recursive=True)
        return out

    def remove(self, out: str) -> None:
        RunFolder(out).remove("")

    # A case.

    def disturb(self, case: Case) -> dict[str, Any]:
        """Run a case. Returns its line of the results."""
        began, command = time.monotonic(), self.commands[case.operation]
        chance = random.Random(str(case))
        findings = Findings()
        step = self._choose_step(case, chance)
        out = self.new_output(case.operation)
        reader = Reader(self, out, findings)
        kills, rival = 0, None
        if case.fault in ("step", "random"):
            kills = self._kill(case, command, out, step, chance, reader)
        elif case.fault == "two":
            rival = self._rival(case, command)
            kills = self._two(command, rival, out, chance, reader)
        elif case.fault == "clock":
            kills = self._clocks(command, out, step, chance, reader)
        else:
            rival = self._rival(case, command)
            kills = self._sleep(case, command, rival, out, step, chance, reader)
        self._finish(command, rival, out, reader)
        label = self.steps(case.operation)[step]
        line = {"case": str(case), **asdict(case), "kills": kills, "step": label}
        line |= {"looks": reader.looks, "seconds": round(time.monotonic() - began, 1)}
        line |= {name: found[:5] for name, found in asdict(findings).items()}
        if not any(asdict(findings).values()):
            self.remove(out)
        return line

    def _choose_step(self, case: Case, chance: random.Random) -> int:
        """Steps of equal cases are spread evenly over those of the operation."""
        steps = self.steps(case.operation)
        fits = STEPS.get(case.operation, lambda step, steps: True)
        wanted = [place for place, step in enumerate(steps) if fits(step, steps)]
        if case.fault != "step":
            return chance.choice(wanted)
        count = CASES[case.store]["step"]
        place = (case.number + chance.random()) / count * len(wanted)
        return wanted[min(int(place), len(wanted) - 1)]

    def _kill(
        self,
        case: Case,
        command: Command,
        out: str,
        step: int,
        chance: random.Random,
        reader: "Reader",
    ) -> int:
        """One driver, killed before a step or at a moment."""
        if case.fault == "step":
            process = self.start(command, out, Fault(step=step))
            reader.watch([process])
        else:
            moment = chance.uniform(0.2, self._seconds(case.operation))
            end = time.monotonic() + moment
            process = self.start(command, out, Fault())
            reader.watch([process], end)
            process.kill()
            process.join()
        return int(process.exitcode == -9)

    @functools.cache  # noqa: B019
    def _seconds(self, operation: str) -> float:
        """How long an undisturbed run takes."""
        out, began = self.new_output(operation), time.monotonic()
        self.run(self.commands[operation], out)
        seconds = time.monotonic() - began
        self.remove(out)
        return seconds

    def _rival(self, case: Case, command: Command) -> Command:
        """What another driver does: the same, or all rows again with another model."""
        if (case.number + OPERATIONS.index(case.operation)) % 2:
            return replace(self.commands["overwrite"], source=command.source)
        return command

    def _two(
        self,
        command: Command,
        rival: Command,
        out: str,
        chance: random.Random,
        reader: "Reader",
    ) -> int:
        """Two drivers that do not see each other's lease; later one of them is killed."""
        faults = [Fault(ignores_leases=True, host=host) for host in ("one", "two")]
        drivers = [
            self.start(each, out, fault)
            for each, fault in zip((command, rival), faults, strict=True)
        ]
        reader.watch(drivers, time.monotonic() + chance.uniform(0.5, 2))
        victim = chance.choice(drivers)
        victim.kill()
        reader.watch(drivers)
        return int(victim.exitcode == -9)

    def _clocks(
        self, command: Command, out: str, step: int, chance: random.Random, reader: "Reader"
    ) -> int:
        """A driver whose clock is wrong is killed, and another one goes on; a third one, of the
        wrong clock again, works at the same time."""
        ahead = chance.choice((HOUR, -HOUR))
        wrong = Fault(step=step, host="wrong", clock=ahead)
        process = self.start(command, out, wrong)
        reader.watch([process])
        right = self.start(command, out, Fault(host="right"))
        reader.watch([right], time.monotonic() + 0.3)
        third = self.start(command, out, replace(wrong, step=-1, host="wrong too"))
        reader.watch([right, third])
        return int(process.exitcode == -9)

    def _sleep(
        self,
        case: Case,
        command: Command,
        rival: Command,
        out: str,
        step: int,
        chance: random.Random,
        reader: "Reader",
    ) -> int:
        """A driver is stopped before a step, another one takes over, and the first wakes up while
        the other works or after it."""
        is_real = case.fault != "asleep"
        seconds = 0.0 if is_real else LEASE_SECONDS
        faults = [
            Fault(step, signal.SIGSTOP, host="sleeper", lease_seconds=seconds),
            Fault(host="other", lease_seconds=seconds),
        ]
        sleeper = self.start(command, out, faults[0])
        end = time.monotonic() + SECONDS_OF_A_CASE
        while sleeper.is_alive() and not _is_stopped(sleeper.pid) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(REAL_SLEEP if is_real else 2 * LEASE_SECONDS)
        other = self.start(rival, out, faults[1])
        reader.watch([other], chance.choice((None, time.monotonic() + 1.0)))
        with contextlib.suppress(ProcessLookupError):
            os.kill(sleeper.pid, signal.SIGCONT)
        reader.watch([sleeper, other])
        # The sleeper may wake up in time to complete what both work on. Then the other one stops.
        if other.exitcode == REFUSED and sleeper.exitcode not in (0, 1):
            reader.findings.other.append(f"the other run: {other.log.read_text()[-300:]}")
        return 0

    def _finish(self, command: Command, rival: Command | None, out: str, reader: "Reader") -> None:
        """The same command once more. If the rival had another model, either may have won: then
        the rows are completed with the model of the table."""
        model = (RunFolder(out).read_json("run.json") or {}).get("identity", {}).get("captioner")
        again = command
        if rival is not None and rival != command:
            again = replace(rival if model == rival.model else command, overwrite=False)
        # The lease of a killed rival from another machine would be alive for some time.
        fault = Fault(ignores_leases=rival is not None)
        code = self.run(again, out, fault)
        if code == REFUSED and rival is not None and rival != command:
            # run.json was older than the table: now it names the model of the table.
            again = replace(command if again.model == rival.model else rival, overwrite=False)
            code = self.run(again, out, fault)
        if code == REFUSED:
            reader.findings.other.append(f"the last run: {self.last_words()}")
        reader.look()
        reader.compare(again, exact=rival is None or rival == command)


@dataclass
class Reader:
    """Looks at a table while drivers work on it, and compares it in the end."""

    campaign: Campaign
    out: str
    findings: Findings
    looks: int = 0

    def watch(self, processes: Sequence[Any], until: float | None = None) -> None:
        """Look at the table again and again until all processes have ended, or until a time."""
        limit = time.monotonic() + SECONDS_OF_A_CASE
        while any(process.is_alive() for process in processes):
            if until is not None and time.monotonic() > until:
                return
            began = time.monotonic()
            self.look()
            # The drivers should not wait for the reader.
            time.sleep(max(0.1, 5 * (time.monotonic() - began)))
            if time.monotonic() > limit:
                logs = "\n".join(process.log.read_text()[-1000:] for process in processes)
                for process in processes:
                    process.kill()
                self.findings.other.append(f"a run does not end: {logs}")
        for process in processes:
            process.join()
            if process.exitcode not in (0, 1, REFUSED, -9):
                words = process.log.read_text()[-1500:]
                self.findings.other.append(f"a run ended with {process.exitcode}: {words}")

    def look(self) -> list[dict[str, Any]]:
        """One look. What does not hold is added to the findings."""
        self.looks += 1
        folder = RunFolder(self.out)
        while True:
            facts = folder.read_json("facts.json")
            table = OutputTable(folder / "captions")
            try:
                rows = [row for file in table.files() for row in self._rows(file.path)]
            except FileNotFoundError:
                continue  # a later version is there, and does without that file
            break
        keys = Counter(row["key"] for row in rows)
        self.findings.doubled += [key for key, count in keys.items() if count > 1]
        models = {row["caption"].split()[0] for row in rows if row["caption"]}
        if len(models) > 1:
            self.findings.mixed.append(f"captions of {sorted(models)}")
        later = folder.read_json("facts.json")
        if facts is None or later is None or facts["table_version"] != later["table_version"]:
            return rows
        failed = sum(row["status"] != SUCCESS for row in rows)
        said = (facts["table_version"], facts["rows"], facts["failed"])
        if said != (table.version, len(rows), failed):
            found = (table.version, len(rows), failed)
            self.findings.false_facts.append(f"facts.json says {said}, the table is {found}")
        return rows

    def _rows(self, path: str) -> list[dict[str, Any]]:
        folder = RunFolder(self.out) / "captions"
        with folder.open(path) as file:
            found: list[dict[str, Any]] = pq.read_table(
                file, columns=["key", "caption", "status"]
            ).to_pylist()
        return found

    def compare(self, command: Command, exact: bool) -> None:
        """The finished table with the source. Not `exact`: failed rows may have been retried."""
        folder, rows = RunFolder(self.out), {row["key"]: row for row in self.look()}
        expected = self._expected(command)
        self.findings.lost += sorted(expected.keys() - rows.keys())
        self.findings.changed += sorted(rows.keys() - expected.keys())
        for key, (said, status) in expected.items():
            row = rows.get(key)
            if row is not None and (row["caption"], row["status"]) != (said, status):
                is_retried = not exact and row["caption"] == answer(command.model, False, key)[0]
                if not is_retried:
                    self.findings.changed.append(f"{key}: {row}")
        plain = {name.rpartition("/")[2] for name in folder.names("captions")}
        table = {file.path for file in OutputTable(folder / "captions").files()}
        if plain != table:
            self.findings.doubled.append(f"files of no table: {sorted(plain ^ table)}")
        left = [name for name in folder.folders() if name[0] == "_" and name != "_plan"]
        hidden = [name for name in folder.names(hidden=True) if name[0] == "_"]
        left += [name for name in hidden if name != "_lease.lock"]
        left += folder.names("captions/_chunks", hidden=True)
        self.findings.other += [f"left behind: {name}" for name in left]
        if folder.read_json("facts.json") is None:
            self.findings.other.append("no facts.json")
        if command.also:
            self._compare_exports(expected)

    def _expected(self, command: Command) -> dict[str, tuple[str, str]]:
        """Caption and status of each key."""
        found = {}
        for table in command.source.tables():
            for key in table["key"].to_pylist():
                text, error = answer(command.model, command.fails, key)
                status = "failed_to_caption" if error else SUCCESS
                is_broken = isinstance(command.source, Folder) and key.endswith("c/7.png")
                found[key] = ("", "failed_to_decode") if is_broken else (text, status)
        if isinstance(command.source, Names):  # the second row of a name has another key
            found = {}
            times: Counter[str] = Counter()
            for table in command.source.tables():
                for name in table["key"].to_pylist():
                    times[name] += 1
                    key = name if times[name] == 1 else f"{name}#{times[name]}"
                    text, error = answer(command.model, command.fails, key)
                    found[key] = (text, "failed_to_caption" if error else SUCCESS)
        return found

    def _compare_exports(self, expected: dict[str, tuple[str, str]]) -> None:
        folder = RunFolder(self.out)
        captions = {key: said for key, (said, status) in expected.items() if status == SUCCESS}
        lines = (folder.read("metadata.jsonl") or b"").decode().splitlines()
        listed = {line["file_name"]: line["text"] for line in map(json.loads, lines)}
        texts = {
            key: (folder.read(f"txt/{key}.txt") or b"").decode().removesuffix("\n")
            for key in captions
        }
        if listed != captions or len(lines) != len(captions):
            self.findings.other.append("metadata.jsonl differs from the table")
        if texts != captions:
            self.findings.other.append("text files differ from the table")
        parts = {Path(name).stem for name in folder.names("captions")}
        for kind in ("webdataset", "jsonl"):
            if {Path(name).stem for name in folder.names(kind)} != parts:
                self.findings.other.append(f"{kind} differs from the table")


def _first(steps: Sequence[str], word: str) -> int:
    return next(place for place, step in enumerate(steps) if word in step)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def table_of_results(lines: Sequence[dict[str, Any]]) -> str:
    """A table for people: a row for each store and kind of fault."""
    kinds = ("lost", "doubled", "changed", "mixed", "false_facts", "other")
    head = ("store", "fault", "cases", "kills", "looks", *kinds)
    rows: dict[tuple[str, str], Counter[str]] = {}
    for line in lines:
        row = rows.setdefault((line["store"], line["fault"]), Counter())
        row.update(cases=1, kills=line["kills"], looks=line["looks"])
        row.update({kind: len(line[kind]) for kind in kinds})
    total: Counter[str] = Counter()
    for row in rows.values():
        total.update(row)
    shown = [head, tuple("---" for _ in head)]
    for (store, fault), row in [*rows.items(), (("all", ""), total)]:
        shown.append((store, fault, *(str(row[name]) for name in head[2:])))
    return "\n".join(f"| {' | '.join(row)} |" for row in shown)


def store_of(name: str, folder: Path) -> contextlib.AbstractContextManager[Store]:
    if name == "s3":
        return moto_bucket()
    if name == "azure":
        return azurite_container(folder / "azurite")
    (folder / "runs").mkdir()
    return contextlib.nullcontext(Store(str(folder / "runs")))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="a line of JSON for each case")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=["local", "s3"])
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--limit", type=int, default=10**9, help="run at most so many cases")
    parser.add_argument("--only", default="", help="cases with this in their names")
    chosen = parser.parse_args(arguments)
    done: dict[str, Any] = {}
    if chosen.results.exists():
        lines = map(json.loads, chosen.results.read_text().splitlines())
        done = {line["case"]: line for line in lines}
    wanted = [case for case in cases(chosen.stores, chosen.operations) if chosen.only in str(case)]
    todo = [case for case in wanted if str(case) not in done]
    for name in chosen.stores:
        some = [case for case in todo[: chosen.limit] if case.store == name]
        if not some:
            continue
        folder = Path(tempfile.mkdtemp(prefix=f"raycap-faults-{name}-"))
        with store_of(name, folder) as store:
            campaign = Campaign(name, store, folder)
            for case in some:
                line = campaign.disturb(case)
                done[str(case)] = line
                with chosen.results.open("a") as file:
                    file.write(f"{json.dumps(line)}\n")
                wrong = {kind: found for kind, found in line.items() if found and kind in WRONG}
                print(f"{case}: {line['seconds']} s {wrong or ''}", flush=True)
    print(table_of_results(list(done.values())))
    return int(any(line[kind] for line in done.values() for kind in WRONG))


WRONG = tuple(asdict(Findings()))


if __name__ == "__main__":
    sys.exit(main())
