"""Reads pictures that may hang, eat memory or crash their decoder, in child processes with limits.

Children are reused. When a picture takes longer than `Reading.timeout` or more memory than
`Reading.max_memory`, or kills its child, only that picture fails, with a reason, and a new child
takes over.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raycap.images.formats import READERS, picture_format
from raycap.images.intake import Intake
from raycap.images.reading import Picture, Reading, read_picture, read_whole

# A picture with more pixels takes so much memory that it needs a limit.
MOST_PIXELS = {"jpeg": 2**25, "png": 2**24}
MOST_BYTES = 2**25
# Segments before the frame header of a JPEG: EXIF, colour profiles, ...
MOST_SEGMENTS = 200

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_BASELINE_OR_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
_TABLES_AND_NOTES = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)
# The parent sends this before pictures: how many they are, and the size of the pickled settings.
# Then come the settings, and the size of each picture.
REQUEST = struct.Struct("<II")
SIZE = struct.Struct("<Q")
# The child sends this before its answer, which is JSON: the size of the answer.
ANSWER = struct.Struct("<I")
READY = b"!"
# A picture fails for the death of a child, or for its lack of memory, only after a new child had
# the same problem: an earlier picture may have damaged the first child, or the system may have
# ended it.
TRIES = 2
# The exchange file releases its memory after pictures larger than this.
LARGE = 4 * 2**20
# Pictures that are read in one child at a time, at most.
PICTURES_TOGETHER, BYTES_TOGETHER = 16, 2 * 2**20
SECONDS_TO_START = 120
# Bytes above `Reading.max_memory` that a child may map: it does not use all stacks and reserves.
SLACK = 64 * 2**20
# One thread each: the address space of idle threads would count towards the memory limit.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}


def is_ordinary(kind: str, data: bytes) -> bool:
    """Whether `data` of the format `kind` may be read without a guard, by its header: a JPEG or
    PNG with 8 bits per channel that is not very large. Every decoder has seen billions of
    those."""
    if len(data) > MOST_BYTES:
        return False
    if kind == "jpeg":
        frame = _frame_of_jpeg(data)
    elif kind == "png" and data[12:16] == b"IHDR" and len(data) > 25:
        width, height, bits = struct.unpack_from(">IIB", data, 16)
        frame = bits, width, height
    else:
        frame = None
    if frame is None:
        return False
    bits, width, height = frame
    return bits <= 8 and width * height <= MOST_PIXELS[kind]


def _frame_of_jpeg(data: bytes) -> tuple[int, int, int] | None:
    """Bits per channel, width and height of a baseline or progressive JPEG; None for others."""
    position = 2
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.match(data, position)
        if not found or found.end() + 7 > len(data):
            return None
        marker, start = found[1][0], found.end()
        if marker in _BASELINE_OR_PROGRESSIVE:
            bits, height, width = struct.unpack_from(">BHH", data, start + 2)
            return bits, width, height
        if marker not in _TABLES_AND_NOTES:
            return None
        position = start + int.from_bytes(data[start : start + 2], "big")
    return None


def needs_guard(data: bytes, reading: Reading) -> bool:
    """Whether a picture must be read in a child process: all but ordinary JPEGs and PNGs, and
    those that are rejected unopened. The limits are POSIX: never on Windows."""
    kind = picture_format(data)
    return (
        os.name == "posix"
        and kind in READERS
        and kind in reading.formats
        and not is_ordinary(kind, data)
    )


def read_guarded(data: bytes, reading: Reading, intake: Intake | None) -> Picture:
    """The picture, read in a child process if needed; at its own size if `intake` is None."""
    if needs_guard(data, reading):
        return read_in_child(data, reading, intake)
    return read_whole(data, reading) if intake is None else read_picture(data, reading, intake)


def read_together(
    bodies: Sequence[bytes], reading: Reading, intake: Intake | None
) -> list[Picture]:
    """Pictures, read in a child process, several ordinary ones at a time: that costs less than one
    after the other. If one of them harms the child, each is read by itself, so that the others are
    not blamed. Safe to call from several threads."""
    pictures: list[Picture | None] = [None] * len(bodies)
    together: list[int] = []

    def read() -> None:
        found = _read_some([bodies[index] for index in together], reading, intake)
        for index, picture in zip(together, found, strict=True):
            pictures[index] = picture
        together.clear()

    size = 0
    for index, data in enumerate(bodies):
        if needs_guard(data, reading) or len(data) > BYTES_TOGETHER:
            pictures[index] = read_in_child(data, reading, intake)
            continue
        if len(together) == PICTURES_TOGETHER or size + len(data) > BYTES_TOGETHER:
            read()
            size = 0
        together.append(index)
        size += len(data)
    if together:
        read()
    return [picture for picture in pictures if picture is not None]


def _read_some(bodies: list[bytes], reading: Reading, intake: Intake | None) -> list[Picture]:
    child = _take(reading.max_memory * 2**20 + SLACK)
    try:
        answers = child.read(bodies, reading, intake)
    except (_TooLong, _Died):
        child.close()
        return [read_in_child(data, reading, intake) for data in bodies]
    except BaseException:  # after an interrupt the child still works on these pictures
        child.close()
        raise
    if any(answer.no_memory or answer.retire for answer in answers):
        child.close()
    else:
        _idle.append(child)
    return [
        read_in_child(data, reading, intake) if answer.no_memory else answer.picture
        for data, answer in zip(bodies, answers, strict=True)
    ]


def read_in_child(data: bytes, reading: Reading, intake: Intake | None) -> Picture:
    """The picture, whatever it is, read in a child process. Safe to call from several threads."""
    for _ in range(TRIES):
        child = _take(_max_memory(reading))
        is_new = child.pictures_read == 0
        try:
            [answer] = child.read([data], reading, intake)
        except _TooLong:
            child.close()
            limit = f"{reading.timeout:g} s (--reading.timeout)"
            return _failed(data, f"reading it took longer than {limit}")
        except _Died:
            child.close()
            reason = "reading it kills the process"
        except BaseException:  # after an interrupt the child still works on this picture
            child.close()
            raise
        else:
            if not answer.no_memory:
                if answer.retire:
                    child.close()
                else:
                    _idle.append(child)
                return answer.picture
            child.close()
            limit = f"{reading.max_memory} MiB of memory (--reading.max-memory)"
            reason = f"reading it takes more than {limit}"
            if is_new:
                break
    return _failed(data, reason)


def _failed(data: bytes, reason: str) -> Picture:
    return Picture(None, picture_format(data), 0, 0, reason)


class _TooLong(Exception):
    """A picture took too long."""


class _Died(Exception):
    """The child ended while it read a picture."""


@dataclasses.dataclass(frozen=True)
class _Answer:
    picture: Picture
    no_memory: bool
    retire: bool


class _Child:
    """One child process, with a file for the bytes of pictures and for their pixels."""

    def __init__(self, max_memory: int) -> None:
        self.max_memory = max_memory
        self.pictures_read = 0
        # The child opens nothing by name: it inherits two pipes and a file that has no name.
        if hasattr(os, "memfd_create"):
            self._exchange = os.memfd_create("raycap")
        else:
            with tempfile.TemporaryFile() as file:
                self._exchange = os.dup(file.fileno())
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        theirs = (requests, answers, self._exchange)
        # -P: no module in the working directory can replace one that the child imports.
        command = [sys.executable, "-P", "-m", "raycap.images.child"]
        command += [*map(str, theirs), str(os.getpid()), str(max_memory)]
        # A Ray worker finds raycap by a path that its environment may not have.
        path = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
        try:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
                pass_fds=theirs,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        finally:
            os.close(requests)
            os.close(answers)
        self._is_ready = False

    def wait_until_ready(self) -> None:
        """Raises RuntimeError if it does not start."""
        if self._is_ready:
            return
        try:
            end = time.monotonic() + SECONDS_TO_START
            self._is_ready = self._receive(len(READY), end) == READY
        except (_Died, _TooLong):
            pass
        if not self._is_ready:
            self.close()
            raise RuntimeError(
                "the process that reads pictures did not start; its output is above. Is there "
                "enough memory for it?"
            )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def read(
        self, bodies: Sequence[bytes], reading: Reading, intake: Intake | None
    ) -> list[_Answer]:
        """Raises _TooLong or _Died, after which the child must be closed."""
        end = time.monotonic() + reading.timeout
        settings = pickle.dumps((reading, intake))
        position = 0
        for data in bodies:
            position = self._write(data, position)
        sizes = b"".join(SIZE.pack(len(data)) for data in bodies)
        try:
            os.write(self._requests, REQUEST.pack(len(bodies), len(settings)) + settings + sizes)
        except BrokenPipeError:
            raise _Died from None
        [size] = ANSWER.unpack(self._receive(ANSWER.size, end))
        answer = json.loads(self._receive(size, end))
        self.pictures_read += len(bodies)
        answers = []
        for fields in answer["pictures"]:  # their pixels are behind the bodies
            shape, no_memory = fields.pop("shape"), fields.pop("no_memory")
            pixels = None
            if shape is not None:
                pixels = np.empty(shape, np.uint8)
                position = self._read_into(pixels, position)
            answers.append(_Answer(Picture(pixels, **fields), no_memory, answer["retire"]))
        if position > LARGE:
            os.ftruncate(self._exchange, 0)
        return answers

    def _write(self, data: bytes, position: int) -> int:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._exchange, left, position)
            left, position = left[written:], position + written
        return position

    def _read_into(self, pixels: np.ndarray, position: int) -> int:
        left = pixels.data.cast("B")
        while left:
            filled = os.preadv(self._exchange, [left], position)
            left, position = left[filled:], position + filled
        return position

    def close(self) -> None:
        """Kill the child."""
        self._process.kill()
        self._process.wait()
        for file in (self._requests, self._answers, self._exchange):
            with contextlib.suppress(OSError):
                os.close(file)

    def _receive(self, size: int, end: float) -> bytes:
        parts = []
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while size:
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                raise _TooLong
            part = os.read(self._answers, size)
            if not part:
                raise _Died
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


_idle: list[_Child] = []  # append and pop are atomic


def start_early(reading: Reading) -> None:
    """Start a child process, for which the first picture then need not wait. Call it in a thread
    that lives on: the child ends with it."""
    max_memory = _max_memory(reading)
    if os.name == "posix" and not any(child.max_memory == max_memory for child in _idle):
        _idle.append(_Child(max_memory))


def _max_memory(reading: Reading) -> int:
    return reading.max_memory * 2**20 + SLACK


def _take(max_memory: int) -> _Child:
    """An idle child, or a new one."""
    while _idle:
        try:
            child = _idle.pop()
        except IndexError:  # another thread has taken it
            break
        if child.max_memory == max_memory and child.is_alive():
            child.wait_until_ready()
            return child
        child.close()
    child = _Child(max_memory)
    child.wait_until_ready()
    return child


def _forget_children() -> None:
    """After a fork the children belong to the parent: two writers to a pipe would mix pictures."""
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_children)
