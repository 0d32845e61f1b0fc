"""Answers that are paid for and not yet in the table, in files beside it.

    OUT/_answers/0001-00000-000000-00000-00064/3f2a-00001.jsonl
        {"call": "9c1f...", "choices": [["A dog.", -0.3, "stop", ""]], "counts": [900, 4, 1.2, 1]}

Each worker writes, every second, what has come for each chunk as a new file: stores cannot append,
and a file that is whole or not there needs no repair. Who makes a chunk again after a kill reads
its folder first, so only calls in flight and the answers of the last second are made again.

A chunk has at most some thousand pictures: so much is held in memory, also of 100 million. When
its rows are committed, its folder is not read any more: the table job removes it.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import uuid
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from raycap.captioners.endpoint.answers import ServerAnswer
from raycap.errors import UserError
from raycap.storage import RunFolder

log = logging.getLogger(__name__)

SECONDS_BETWEEN_WRITES = 1.0
# Chunks whose earlier answers are held in memory.
MOST_GROUPS = 64
FILES_AT_ONCE = 16
# A folder may be removed while a file is written into it.
WRITES = 3
# The folder of answers whose rows say no chunk.
NO_GROUP = "rest"
_NAME = re.compile(r"[0-9A-Za-z][\w-]{0,119}", re.ASCII)


def call_digest(identity: str, sha256: str, number: int, captions: int, *asked: str) -> str:
    """Names a call: the same picture, prompts, model and sampling have the same name. `asked` is
    what the identity does not say: which prompt, with which values, in which attempt."""
    text = f"{number} {captions} {sha256} {identity}"
    if asked:
        text = f"{text} {json.dumps(asked)}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Journal:
    """The journal of one worker. Its methods are called in one event loop."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._worker, self._written = folder, uuid.uuid4().hex[:12], 0
        self._known: OrderedDict[str, asyncio.Task[dict[str, ServerAnswer]]] = OrderedDict()
        self._waiting: dict[str, list[str]] = {}
        self._threads = ThreadPoolExecutor(FILES_AT_ONCE, "journal")
        self._writing: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._failure: BaseException | None = None

    async def find(self, group: str, call: str) -> ServerAnswer | None:
        """The answer of a call that an earlier worker has kept."""
        group = _folder_name(group)
        if group not in self._known:
            self._known[group] = asyncio.ensure_future(self._read(group))
            while len(self._known) > MOST_GROUPS:
                self._known.popitem(last=False)
        self._known.move_to_end(group)
        return (await asyncio.shield(self._known[group])).get(call)

    def keep(self, group: str, call: str, answer: ServerAnswer) -> None:
        """Writes an answer within the next second. Raises UserError if it could not be done
        before."""
        if self._failure is not None:
            raise self._failure
        line = json.dumps({"call": call, **answer.to_plain()}, ensure_ascii=False)
        self._waiting.setdefault(_folder_name(group), []).append(line)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._write_soon())

    async def close(self) -> None:
        """Writes what is left."""
        self._closing.set()
        if self._writing is not None:
            await self._writing
        self._threads.shutdown()
        if self._failure is not None:
            raise self._failure

    async def _write_soon(self) -> None:
        while self._waiting:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), SECONDS_BETWEEN_WRITES)
            try:
                await self._write()
            except Exception as error:  # noqa: BLE001 - `keep` and `close` raise it
                self._failure = error

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        waiting, self._waiting = self._waiting, {}
        writes = []
        for group, lines in waiting.items():
            self._written += 1
            name = f"{group}/{self._worker}-{self._written:05}.jsonl"
            content = "".join(f"{line}\n" for line in lines).encode()
            writes.append(loop.run_in_executor(self._threads, self._write_file, name, content))
        await asyncio.gather(*writes)

    def _write_file(self, name: str, content: bytes) -> None:
        for remaining in reversed(range(WRITES)):
            try:
                return self._folder.write(name, content)
            except UserError as error:
                # The rows of its chunk were committed meanwhile, and its folder was removed.
                is_removed = isinstance(error.__cause__, FileNotFoundError)
                if not is_removed or not remaining:
                    raise

    async def _read(self, group: str) -> dict[str, ServerAnswer]:
        loop = asyncio.get_running_loop()
        names = await loop.run_in_executor(self._threads, self._folder.names, group)
        reads = [loop.run_in_executor(self._threads, self._folder.read, name) for name in names]
        found: dict[str, ServerAnswer] = {}
        for content in await asyncio.gather(*reads):
            for line in (content or b"").splitlines():
                # A power cut may leave a file of nothing.
                with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):
                    data = json.loads(line)
                    found[data["call"]] = ServerAnswer.from_plain(data)
        if found:
            log.info("%d answers of an interrupted run are used again", len(found))
        return found


def _folder_name(group: str) -> str:
    """A group's name comes from rows: it must stay in the folder."""
    if _NAME.fullmatch(group):
        return group
    return hashlib.sha256(group.encode()).hexdigest()[:32] if group else NO_GROUP
