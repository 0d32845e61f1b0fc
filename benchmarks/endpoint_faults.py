"""Kill -9 a run of the endpoint captioner, over and over, resume it, and count at the server which
calls are made again.

    python benchmarks/endpoint_faults.py --kills 100 --pictures 200

Half of the kills come after some answers of the server, half between two steps of the run: before
or after it writes, renames or removes something, or commits. Every second table is made while the
server storms: 429, 503, 500, connections that are reset, and answers that are cut off. Some tables
have pictures that the server refuses at first, and `--retry failed` is killed too.

In the end each table must be that of an undisturbed run. A call may be made again only if its
answer was lost: it was in flight, or its answer was younger than about a second. All others are in
the table or in OUT/_answers.

Each run is a fork of one process that has everything imported, so a kill costs a second or two.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from deltalake import DeltaTable

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path += [str(REPOSITORY / "tests"), str(REPOSITORY / "benchmarks")]

import faults_on_ray as faults  # noqa: E402
from chat_server import (  # type: ignore[import-not-found]  # noqa: E402
    ChatServer,
    caption_of,
    cut,
    good,
    reset,
    serving,
    status,
)
from small_captioner import photos  # type: ignore[import-not-found]  # noqa: E402

IN_FLIGHT = 8
SECONDS_PER_ANSWER = 0.04
SHARE_OF_STORM = 0.2
STORM = [
    *(status(429, headers="Retry-After: 0\r\n"), status(503, headers="Retry-After: 0\r\n")) * 2,
    status(500),
    reset,
    cut,
]
STEPS = ("create", "stage", "write", "rename", "remove")


# What runs in the process that is killed.


def forks() -> None:
    """Reads runs from stdin, one line of JSON each, and starts them as forks: prints the process
    id, and when it has ended, how."""
    from raycap.bulk import captions, run, scheduler  # noqa: F401 - once for all forks
    from raycap.captioners.endpoint import captioner  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = 3
            try:
                code = run_here(**asked["run"])
            except BaseException as error:  # noqa: BLE001 - the log says it
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run_here(
    url: str, source: str, out: str, retry: Any, between_commits: float, kill_at: int
) -> int:
    """One run without Ray; it kills itself at the step `kill_at`, and writes how many steps it
    had."""
    from raycap.bulk import scheduler
    from raycap.bulk.captions import captions_job
    from raycap.bulk.options import CaptionOptions
    from raycap.bulk.run import run_job
    from raycap.captioners.endpoint import Endpoint
    from raycap.cluster import Cluster
    from raycap.fetch import Fetch
    from raycap.images import Reading
    from raycap.sources import Folder
    from raycap.storage import RunFolder

    steps = threading.Lock(), [0]

    def step() -> None:
        with steps[0]:
            steps[1][0] += 1
            if steps[1][0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            step()
            answer = method(*arguments, **named)
            step()
            return answer

        setattr(owner, name, call)

    for name in STEPS:
        counted(RunFolder, name)
    counted(DeltaTable, "create_write_transaction")
    scheduler.SECONDS_BETWEEN_COMMITS = between_commits
    endpoint = Endpoint(name="tiny-vl", in_flight=IN_FLIGHT, retries=20)
    options = CaptionOptions(out=out, batch=8, part_rows=60, retry=retry)
    job = captions_job(
        endpoint.captioner(url, None, None),
        Folder(source),
        options,
        *(Fetch(), Reading(), Cluster()),
    )
    code = run_job(job, {})
    Path(f"{out}.steps").write_text(str(steps[1][0]))
    return code


# The other side: the server, the kills, and what is counted.


@dataclass
class Counts(faults.Tally):
    """What came of the kills."""

    after_answers: int = 0
    between_steps: int = 0
    paid: int = 0
    """good answers that the server has made"""
    wanted: int = 0
    """pictures"""
    asked_again: int = 0
    """requests whose answer was in the table or in _answers: there must be none"""
    oldest: float = 0.0
    """seconds from the sending of the oldest answer that was lost to the kill"""


@dataclass
class Stub:
    """The server, and what it knows of the present run."""

    server: ChatServer
    chance: random.Random
    storms: bool = False
    refuses: bool = False
    counts: Counts = field(default_factory=Counts)
    sent: dict[str, float] = field(default_factory=dict)
    """By caption, when the answer was sent; of the present run"""
    kept: set[str] = field(default_factory=set)
    """captions that were on the disk when the present run began"""

    def __post_init__(self) -> None:
        self.server.keeps_requests = False
        self.server.delay = SECONDS_PER_ANSWER
        self.server.always = self._answer

    async def _answer(self, server: ChatServer, request: Any, writer: Any) -> None:
        text = caption_of(request.picture)
        self.counts.asked_again += text in self.kept
        if self.refuses and text[-1] in "0f":
            await status(422)(server, request, writer)
        elif self.storms and self.chance.random() < SHARE_OF_STORM:
            await self.chance.choice(STORM)(server, request, writer)
        else:
            await good(server, request, writer)
            self.counts.paid += 1
            self.sent[text] = time.monotonic()


class Runs:
    """The process that forks."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--forks"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )

    def start(self, log: Path, **run: Any) -> int:
        """The process id of a new run."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"log": str(log), "run": run}) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """The exit code of the run; -9 if it was killed."""
        return int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def kept_in(out: Path) -> set[str]:
    """Captions in the table, in side tables and in _answers."""
    found: set[str] = set()
    for log in out.rglob("_delta_log"):
        for file in DeltaTable(str(log.parent)).file_uris():
            found.update(pq.read_table(file, columns=["caption"])["caption"].to_pylist())
    for path in out.glob("_answers/*/*.jsonl"):
        for line in path.read_text().splitlines():
            found.update(choice[0] for choice in json.loads(line)["choices"])
    return found - {""}


def kill_after_answers(pid: int, stub: Stub, answers: int) -> None:
    """Kill -9 when the server has answered so many pictures, or the run has ended."""
    end = time.monotonic() + 120
    stat = Path(f"/proc/{pid}/stat")
    while len(stub.sent) < answers and time.monotonic() < end:
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[0] in "ZX":
                return
        if not stat.exists():
            return
        time.sleep(0.005)
    time.sleep(stub.chance.random() * 0.5)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def disturb(
    out: Path,
    kills: int,
    stub: Stub,
    run: Callable[[int], int],
    wait: Callable[[], int],
    steps: int,
) -> int:
    """Runs until one of them ends by itself, of which at most `kills` are killed. Returns how many
    were."""
    killed, chance, counts = 0, stub.chance, stub.counts
    while True:
        between_steps = chance.random() < 0.5
        kill_at = chance.randrange(1, steps) if between_steps and killed < kills else 0
        stub.sent.clear()
        stub.kept = kept_in(out)
        pid = run(kill_at)
        if killed < kills and not between_steps:
            left = max(2, counts.wanted - len(stub.kept))
            kill_after_answers(pid, stub, chance.randrange(1, left))
        code = wait()
        if code != -signal.SIGKILL:
            stub.kept = set()
            log = Path(f"{out}.log").read_text(errors="replace")[-3000:]
            assert code in faults.ANSWERS, log
            return killed
        moment = time.monotonic()
        killed += 1
        counts.kills += 1
        counts.between_steps += between_steps
        counts.after_answers += not between_steps
        kept = kept_in(out)
        ages = [moment - sent for text, sent in stub.sent.items() if text not in kept]
        counts.oldest = max([counts.oldest, *ages])


def campaign(
    folder: Path, kills: int, each: int, pictures: int, seed: int = 0, say: Any = print
) -> Counts:
    """Tables that are each killed some times, until there were so many kills."""
    source = photos(folder / "photos", range(pictures))
    runs = Runs()
    counts = Counts()
    try:
        with serving() as server:
            stub = Stub(server, random.Random(seed))
            stub.counts = counts

            def run(out: Path, retry: str, between_commits: float, kill_at: int) -> int:
                return runs.start(
                    Path(f"{out}.log"),
                    **{"url": server.url, "source": str(source), "out": str(out)},
                    **{"retry": retry, "between_commits": between_commits, "kill_at": kill_at},
                )

            run(folder / "undisturbed", "", 0.3, 0)
            assert runs.wait() == 0, Path(f"{folder / 'undisturbed'}.log").read_text()[-3000:]
            steps = int((folder / "undisturbed.steps").read_text())
            expected = faults.read(folder / "undisturbed")
            pile = faults.Pile(source, folder, expected)
            assert len({caption for caption, _ in expected.values()}) == pictures
            counts.paid = 0
            number = 0
            while counts.kills < kills:
                out = folder / f"table{number}"
                stub.storms, retries = number % 2 == 1, number % 4 >= 2
                between_commits = (0.3, 1000.0)[number // 2 % 2]
                counts.wanted, paid = pictures, counts.paid
                for retry in ("", "failed") if retries else ("",):
                    stub.refuses = retries and not retry
                    most = min(each if not retries else -(-each // 2), kills - counts.kills)
                    disturb(
                        out,
                        most,
                        stub,
                        lambda at: run(out, retry, between_commits, at),  # noqa: B023
                        runs.wait,
                        steps,
                    )
                faults.compare(pile, out, counts)
                say(
                    f"table {number}: {counts.kills} kills, {counts.lost} lost, "
                    f"{counts.doubled} doubled, {counts.changed} changed, {counts.asked_again} "
                    f"asked again for nothing, paid {counts.paid - paid} for {pictures}, oldest "
                    f"lost answer {counts.oldest:.2f} s",
                    flush=True,
                )
                shutil.rmtree(out)
                number += 1
    finally:
        runs.end()
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = faults.parser_of_kills(__doc__ or "", kills=100, each=5, pictures=200)
    parser.add_argument("--forks", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.forks:
        forks()
        return 0
    folder = Path(tempfile.mkdtemp(prefix="raycap-endpoint-faults-"))
    try:
        counts = campaign(folder, chosen.kills, chosen.each, chosen.pictures, chosen.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{counts.kills} kills, {counts.after_answers} after answers and {counts.between_steps} "
        f"between steps: {counts.lost} rows lost, {counts.doubled} doubled, {counts.changed} "
        f"changed, {counts.asked_again} calls made again whose answer was kept"
    )
    return int(any((counts.lost, counts.doubled, counts.changed, counts.asked_again)))


if __name__ == "__main__":
    sys.exit(main())
