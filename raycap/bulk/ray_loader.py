"""Loads pictures on a Ray cluster: those from the web are fetched and decoded by the fetching
actors, everything else by tasks. Tasks help to decode what the actors have fetched where there are
more processors than theirs.

One thread holds all state. Everything that happens is a call in its queue.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import ObjectLostError, RayActorError

from raycap.bulk.fetch_actor import FetchAnswer, Fetchers
from raycap.bulk.loading import Loaded, RowPlace, rows_at, web_rows
from raycap.bulk.pictures import load_table, with_loaded
from raycap.fetch import Unfinished
from raycap.images import Intake, Square

log = logging.getLogger(__name__)

# Ray runs a task again so often when its process or node is lost. From the second time on, each
# picture is read in a child process (see `pictures`).
RETRIES = 3
# A row that was asked for so long ago only waits: others are asked for.
SECONDS_TO_WAIT = 2.0
ROWS_PER_ASK, MOST_ASKED = 128, 1024
# A fetching actor gives so many pictures at a time if they take no more: each answer costs as much
# as some pictures.
MOST_ROWS_PER_LOAD, BYTES_PER_LOAD = 128, 24 * 2**20
# A decoding task whose store is silent for so long gives its rows to the fetching actors.
SECONDS_IN_TASK = 5.0
# Calls of one fetching actor that is behind: it decodes for one while the other travels.
LOADS_AT_ONCE = 2
# Losses of one fetching actor with nothing fetched between them. Then the worker gives up.
MOST_LOSSES = 5
SECONDS_AFTER_A_LOSS = 1.0


@dataclass
class _Ask:
    """Rows that one fetching actor was asked for at one time."""

    asked_at: float
    left: int


@dataclass(eq=False)
class _Fetching:
    """What one fetching actor is asked for."""

    actor: Any
    rows: dict[int, tuple[RowPlace, Unfinished, _Ask]] = field(default_factory=dict)
    loads: int = 0  # calls that have no answer yet
    is_taking: bool = False
    is_behind: bool = False  # it has more than it can decode at once
    behind: int = 0  # rows that it had fetched and not decoded when it last answered
    is_lost: bool = False  # and not yet asked again
    life: str = ""  # which process it is
    losses: int = 0


class RayLoader:
    """The loader of one worker. `most_tasks` of its tasks decode at the same time, or have decoded
    what the model has not taken yet."""

    def __init__(
        self,
        name: str,
        how: dict[str, Any],
        rows_per_task: int,
        most_tasks: int,
        fetchers: Fetchers,
        nodes: dict[str, str] | None,
    ) -> None:
        self._task: Any = ray.remote(num_cpus=1, max_retries=RETRIES, label_selector=nodes or {})(
            load_table
        )
        self._name, self._how = name, how
        self._rows_per_task, self._free_tasks = rows_per_task, most_tasks
        self._rows_per_load = max(rows_per_task, _rows_that_fit(how["intake"]))
        self._fetchers = fetchers
        self._fetching = [_Fetching(actor) for actor in fetchers.actors]
        self._calls: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None]
        self._calls = queue.SimpleQueue()
        self._loaded: queue.SimpleQueue[Loaded | BaseException | None] = queue.SimpleQueue()
        self._rows: dict[int, pa.Table] = {}
        self._next_number = 0
        self._patience = SECONDS_IN_TASK if fetchers.actors else None
        # What is not begun: slices for tasks, rows to be fetched, and bodies to be decoded.
        self._parts: deque[list[RowPlace]] = deque()
        self._wanted: deque[tuple[RowPlace, Unfinished]] = deque()
        self._bodies: deque[tuple[list[RowPlace], list[Unfinished], Any]] = deque()
        self._asks: deque[_Ask] = deque()
        self._rows_waiting = 0
        threading.Thread(target=self._run, daemon=True, name="load").start()

    # Called by other threads.

    @property
    def rows_waiting(self) -> int:
        return self._rows_waiting

    def add(self, work: int, rows: pa.Table) -> None:
        is_web = web_rows(rows) if self._fetching else [False] * len(rows)
        self._call(self._add, work, rows, is_web)

    def next(self, seconds: float | None) -> Loaded | None:
        try:
            loaded = self._loaded.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(loaded, BaseException):
            raise loaded
        if loaded is None:
            self._loaded.put(None)  # it stays stopped
        else:
            self._call(self._free_task)
        return loaded

    def forget(self, work: int) -> None:
        self._call(self._forget, work)

    def use_fetchers(self, fetchers: Fetchers) -> None:
        """The cluster has changed. If these are others, the former ones have ended."""
        self._call(self._use_fetchers, fetchers)

    def stop(self) -> None:
        self._calls.put(None)

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        self._calls.put((method, arguments))

    # Called by the thread that holds the state.

    def _run(self) -> None:
        try:
            while True:
                try:
                    call = self._calls.get(timeout=SECONDS_TO_WAIT / 4)
                except queue.Empty:
                    pass
                else:
                    if call is None:
                        break
                    method, arguments = call
                    method(*arguments)
                    del call, method, arguments
                if self._calls.empty():
                    self._go_on()
        except BaseException as error:  # noqa: BLE001 - raised again where the rows are wanted
            self._loaded.put(error)
        self._loaded.put(None)

    def _add(self, work: int, rows: pa.Table, is_web: list[bool]) -> None:
        self._rows[work] = rows
        web = np.array(is_web, bool)
        here, there = np.flatnonzero(~web), np.flatnonzero(web)
        for start in range(0, len(here), self._rows_per_task):
            part = here[start : start + self._rows_per_task].tolist()
            self._parts.append([RowPlace(work, row) for row in part])
        deadline = self._how["fetch"].deadline
        uris = rows["uri"].take(there).to_pylist()
        for row, uri in zip(there.tolist(), uris, strict=True):
            self._wanted.append((RowPlace(work, row), Unfinished(uri, deadline)))

    def _forget(self, work: int) -> None:
        self._rows.pop(work, None)

    def _free_task(self) -> None:
        self._free_tasks += 1

    def _go_on(self) -> None:
        """Begin what can be begun."""
        while self._free_tasks > 0 and (self._bodies or self._parts):
            self._free_tasks -= 1
            if self._bodies:
                places, starts, bodies = self._bodies.popleft()
                self._decode(places, starts, bodies=bodies)
            else:
                self._decode(self._parts.popleft(), [], patience=self._patience)
        expected = self._count_waiting()
        if self._free_tasks > 0 and not self._bodies:
            # New rows are asked for only while there is room to decode them.
            while self._wanted and expected < MOST_ASKED:
                some = [
                    self._wanted.popleft() for _ in range(min(ROWS_PER_ASK, len(self._wanted)))
                ]
                self._ask(some)
                expected += len(some)
            for fetching in self._fetching:
                if fetching.rows and not fetching.is_lost:
                    self._call_fetcher(fetching)

    def _call_fetcher(self, fetching: _Fetching) -> None:
        """Get what it has fetched."""
        if not fetching.loads:
            self._load(fetching)
        elif fetching.is_behind:
            under_way = sum(each.loads for each in self._fetching)
            if fetching.loads < LOADS_AT_ONCE and self._free_tasks > under_way:
                self._load(fetching)  # it decodes these while the others are on their way
            busy = sum(each.is_behind for each in self._fetching)
            if not fetching.is_taking and self._fetchers.cpus > busy * self._fetchers.decoders:
                self._take(fetching)

    def _count_waiting(self) -> int:
        """Returns how many rows can be expected soon: they were asked for only now, or a fetching
        actor has them. All others wait for a server."""
        long_ago = time.monotonic() - SECONDS_TO_WAIT
        while self._asks and (self._asks[0].asked_at < long_ago or not self._asks[0].left):
            self._asks.popleft()
        recent = sum(ask.left for ask in self._asks)
        asked = sum(len(fetching.rows) for fetching in self._fetching)
        behind = sum(fetching.behind for fetching in self._fetching)
        expected = max(recent, min(behind, asked))
        self._rows_waiting = asked - expected
        return expected

    def _ask(self, wanted: Sequence[tuple[RowPlace, Unfinished]]) -> None:
        from raycap.fetch.owners import owner_of  # urllib3 takes 50 ms

        by_owner: dict[int, list[tuple[RowPlace, Unfinished]]] = {}
        for place, start in wanted:
            owner = owner_of(start.uri, len(self._fetching))
            by_owner.setdefault(owner, []).append((place, start))
        for owner, some in by_owner.items():
            ask = _Ask(time.monotonic(), len(some))
            self._asks.append(ask)
            numbers = range(self._next_number, self._next_number + len(some))
            self._next_number += len(some)
            fetching = self._fetching[owner]
            for number, (place, start) in zip(numbers, some, strict=True):
                fetching.rows[number] = (place, start, ask)
            starts = [start for _, start in some]
            fetching.actor.add.remote(self._name, list(zip(numbers, starts, strict=True)))

    def _load(self, fetching: _Fetching) -> None:
        fetching.loads += 1
        answer = fetching.actor.load.remote(self._name, self._rows_per_load)
        self._when_done(answer, self._loaded_there, fetching)

    def _loaded_there(self, answer: Any, fetching: _Fetching) -> None:
        fetching.loads -= 1
        if fetching not in self._fetching:
            return
        if isinstance(answer, RayActorError | ObjectLostError | LookupError):
            return self._ask_again(fetching, answer)
        if isinstance(answer, BaseException):
            raise answer
        given, loaded = answer
        fetching.is_behind = len(given.numbers) == self._rows_per_load
        known = self._note(fetching, given)
        if known:
            if len(known) < len(given.numbers):  # others were given twice, after a loss
                loaded = loaded.take(list(known))
            self._free_tasks -= 1
            places = [place for place, _ in known.values()]
            rows = rows_at(self._rows, places).drop_columns(["embedded"])
            self._loaded.put(Loaded(places, with_loaded(rows, loaded)))

    def _take(self, fetching: _Fetching) -> None:
        fetching.is_taking = True
        take = fetching.actor.take.options(num_returns=2)
        given, bodies = take.remote(self._name, self._rows_per_task)
        self._when_done(given, self._taken, fetching, bodies)

    def _taken(self, answer: Any, fetching: _Fetching, bodies: Any) -> None:
        fetching.is_taking = False
        if fetching not in self._fetching:
            return
        if isinstance(answer, RayActorError | LookupError):
            return self._ask_again(fetching, answer)
        if isinstance(answer, BaseException):
            raise answer
        known = list(self._note(fetching, answer).values())
        if len(known) < len(answer.numbers):
            self._wanted.extendleft(known)
        elif known:
            places, starts = [place for place, _ in known], [start for _, start in known]
            self._bodies.append((places, starts, bodies))

    def _note(
        self, fetching: _Fetching, given: FetchAnswer
    ) -> dict[int, tuple[RowPlace, Unfinished]]:
        """Which rows have come, by their place in the answer. Those that an earlier answer had
        are left out."""
        if fetching.life not in ("", given.life):
            self._ask_again(fetching, LookupError("it was started again"))
        fetching.life, fetching.losses, fetching.behind = given.life, 0, given.behind
        for number, start in given.elsewhere:
            if (known := self._answered(fetching, number)) is not None:
                self._wanted.appendleft((known[0], start))
        rows = ((index, self._answered(fetching, n)) for index, n in enumerate(given.numbers))
        return {index: row for index, row in rows if row is not None}

    def _answered(self, fetching: _Fetching, number: int) -> tuple[RowPlace, Unfinished] | None:
        found = fetching.rows.pop(number, None)
        if found is None:
            return None
        place, start, ask = found
        ask.left -= 1
        return place, start

    def _ask_again(self, fetching: _Fetching, error: BaseException) -> None:
        """A fetching actor was lost. A new one takes its place, which knows nothing."""
        if fetching.is_lost:  # by another call
            return
        fetching.is_lost = True
        fetching.losses += 1
        if fetching.losses > MOST_LOSSES:
            raise error
        log.warning("a process that fetches was lost (%s): its pictures are fetched again", error)
        timer = threading.Timer(SECONDS_AFTER_A_LOSS, self._call, (self._ask_now, fetching))
        timer.daemon = True
        timer.start()

    def _ask_now(self, fetching: _Fetching) -> None:
        fetching.is_lost, fetching.behind = False, 0
        lost = [(number, start) for number, (_, start, _) in fetching.rows.items()]
        fetching.actor.add.remote(self._name, lost)

    def _use_fetchers(self, fetchers: Fetchers) -> None:
        before, self._fetchers = self._fetchers, fetchers
        if fetchers.generation == before.generation:
            return
        for fetching in self._fetching:
            for place, start, ask in fetching.rows.values():
                ask.left = 0
                self._wanted.append((place, start))
        self._fetching = [_Fetching(actor) for actor in fetchers.actors]

    def _decode(self, places: list[RowPlace], starts: list[Unfinished], **how: Any) -> None:
        table = rows_at(self._rows, places)
        answer = self._task.remote(table, **self._how, **how)
        self._when_done(answer, self._decoded, places, starts)

    def _decoded(self, answer: Any, places: list[RowPlace], starts: list[Unfinished]) -> None:
        if isinstance(answer, ObjectLostError) and starts:
            # The node with the bodies was lost.
            self._free_tasks += 1
            self._wanted.extendleft(zip(places, starts, strict=True))
            return
        if isinstance(answer, BaseException):
            raise answer
        is_loaded = pc.not_equal(answer["status"], "")
        if pc.all(is_loaded).as_py():
            self._loaded.put(Loaded(places, answer))
            return
        # Of a store that is slow: the fetching actors can wait for it.
        deadline = self._how["fetch"].deadline
        slow = np.flatnonzero(~is_loaded.to_numpy())
        uris = answer["uri"].take(slow).to_pylist()
        for row, uri in zip(slow.tolist(), uris, strict=True):
            self._wanted.append((places[row], Unfinished(uri, deadline)))
        loaded = np.flatnonzero(is_loaded.to_numpy())
        if len(loaded):
            self._loaded.put(Loaded([places[row] for row in loaded], answer.filter(is_loaded)))
        else:
            self._free_tasks += 1

    def _when_done(self, answer: Any, method: Callable[..., None], *arguments: Any) -> None:
        """Call a method with the answer of a task or an actor, or with its error."""

        def done(future: Any) -> None:
            try:
                self._call(method, future.result(), *arguments)
            except BaseException as error:  # noqa: BLE001 - the method decides what to do about it
                self._call(method, error, *arguments)

        answer.future().add_done_callback(done)


def _rows_that_fit(intake: Intake) -> int:
    """How many pictures come in one answer; 0 if it is not known how large they are."""
    if not isinstance(intake, Square):
        return 0
    return min(MOST_ROWS_PER_LOAD, BYTES_PER_LOAD // (3 * intake.size**2))
