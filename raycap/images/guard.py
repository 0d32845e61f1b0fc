"""Reads pictures that may hang, eat memory or crash their decoder, in child processes with limits.

A child is used again for the next picture. When a picture takes longer than `Reading.timeout`, more memory than
`Reading.max_memory`, or kills the child, that picture alone fails, with a reason, and a new child takes over.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import select
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from raycap.images.formats import READERS, picture_format
from raycap.images.ordinary import is_ordinary
from raycap.images.reading import Picture, Reading, Square, read_picture, read_whole

# What the parent sends before each picture: size of the picture's bytes, size of the pickled settings.
REQUEST = struct.Struct("<QI")
# What the child sends back: size of the answer, which is JSON.
ANSWER = struct.Struct("<I")
READY = b"!"
# A picture is blamed for the death of a child, or for its lack of memory, when that happens in a new child too. The
# first time, an earlier picture may have damaged the child, or the system may have ended it for want of memory.
TRIES = 2
# The exchange file gives its memory back after a picture that was larger than this.
LARGE = 4 * 2**20
SECONDS_TO_START = 120
# Bytes above `Reading.max_memory` that a child may map: stacks and the reserves of the allocator are not in use.
SLACK = 64 * 2**20
# One thread each: idle ones would cost address space, which the memory limit counts.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}


def needs_guard(data: bytes, reading: Reading) -> bool:
    """Whether a picture is to be read in a child process: all but ordinary JPEGs and PNGs, and what is refused
    unopened. (The limits are POSIX: on Windows every picture is read in this process.)"""
    kind = picture_format(data)
    return (
        os.name == "posix"
        and kind in READERS
        and kind in reading.formats
        and not is_ordinary(kind, data)
    )


def read_guarded(data: bytes, reading: Reading, square: Square | None) -> Picture:
    """The picture, read in a child process if need be; at its own size where there is no `square`."""
    if needs_guard(data, reading):
        return read_in_child(data, reading, square)
    return read_whole(data, reading) if square is None else read_picture(data, reading, square)


def read_in_child(data: bytes, reading: Reading, square: Square | None) -> Picture:
    """The picture, whatever it is, read in a child process. Safe to call from several threads."""
    for _ in range(TRIES):
        child = _take(reading.max_memory * 2**20 + SLACK)
        is_new = child.pictures_read == 0
        try:
            answer = child.read(data, reading, square)
        except _TooLong:
            child.close()
            return _failed(
                data, f"reading it took longer than {reading.timeout:g} s (--reading.timeout)"
            )
        except _Died:
            child.close()
            reason = "reading it kills the process"
        except BaseException:  # an interrupt leaves a child that still works on this picture
            child.close()
            raise
        else:
            if not answer.no_memory:
                child.close() if answer.retire else _idle.append(child)
                return answer.picture
            child.close()
            reason = f"reading it takes more than {reading.max_memory} MiB of memory (--reading.max-memory)"
            if is_new:
                break
    return _failed(data, reason)


def _failed(data: bytes, reason: str) -> Picture:
    return Picture(None, picture_format(data), 0, 0, reason)


class _TooLong(Exception):
    """A picture took too long."""


class _Died(Exception):
    """The child ended while it read."""


@dataclasses.dataclass(frozen=True)
class _Answer:
    picture: Picture
    no_memory: bool
    retire: bool


class _Child:
    """One child process, with a file through which bytes go in and pixels come out."""

    def __init__(self, max_memory: int) -> None:
        self.max_memory = max_memory
        self.pictures_read = 0
        # The child opens nothing by name: it inherits two pipes and a file that has no name.
        self._exchange = (
            os.memfd_create("raycap") if hasattr(os, "memfd_create") else _unnamed_file()
        )
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        theirs = (requests, answers, self._exchange)
        # -P: no module in the working directory can take the place of one that the child imports.
        command = [
            sys.executable,
            "-P",
            "-m",
            "raycap.images.child",
            *map(str, theirs),
            str(os.getpid()),
        ]
        # A worker of Ray finds raycap by a path that its environment need not name.
        path = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
        try:
            self._process = subprocess.Popen(
                [*command, str(max_memory)],
                env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
                pass_fds=theirs,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        finally:
            os.close(requests)
            os.close(answers)
        try:
            started = self._receive(len(READY), time.monotonic() + SECONDS_TO_START) == READY
        except (_Died, _TooLong):
            started = False
        if not started:
            self.close()
            raise RuntimeError(
                "the process that reads pictures does not start; what it wrote is above. Is there memory for it?"
            )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def read(self, data: bytes, reading: Reading, square: Square | None) -> _Answer:
        """Raises _TooLong or _Died, after which the child is of no more use."""
        end = time.monotonic() + reading.timeout
        settings = pickle.dumps((reading, square))
        with open(self._exchange, "r+b", buffering=0, closefd=False) as file:
            file.seek(0)
            written = 0
            while written < len(data):
                written += file.write(memoryview(data)[written:])
        try:
            os.write(self._requests, REQUEST.pack(len(data), len(settings)) + settings)
        except BrokenPipeError:
            raise _Died from None
        [size] = ANSWER.unpack(self._receive(ANSWER.size, end))
        fields = json.loads(self._receive(size, end))
        self.pictures_read += 1
        shape, no_memory, retire = (fields.pop(name) for name in ("shape", "no_memory", "retire"))
        pixels = None
        if shape is not None:
            pixels, filled = np.empty(shape, np.uint8), 0
            with open(self._exchange, "rb", buffering=0, closefd=False) as file:
                file.seek(0)
                while filled < pixels.nbytes:
                    filled += file.readinto(pixels.data.cast("B")[filled:]) or 0
        if len(data) > LARGE or (pixels is not None and pixels.nbytes > LARGE):
            os.ftruncate(self._exchange, 0)
        return _Answer(Picture(pixels, **fields), no_memory, retire)

    def close(self) -> None:
        """End the child, whatever it does."""
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


_idle: list[_Child] = []  # children without work; append and pop are atomic


def _take(max_memory: int) -> _Child:
    """A child without work, or a new one."""
    while True:
        try:
            child = _idle.pop()
        except IndexError:
            return _Child(max_memory)
        if child.max_memory == max_memory and child.is_alive():
            return child
        child.close()


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _forget_children() -> None:
    """After a fork, the children are the parent's: two who write to one pipe would mix their pictures."""
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_children)
