"""The child process in which suspicious pictures are read: a bad one can only harm this process.

`raycap.images.guard` starts it as `python -m raycap.images.child` and talks to it over pipes. It
imports neither Ray nor torch. It ends when its parent ends, or when one picture takes too long.
"""

import contextlib
import ctypes
import functools
import json
import os
import pickle
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from PIL import AvifImagePlugin

from raycap.images.guard import ANSWER, READY, REQUEST, SIZE
from raycap.images.intake import Intake
from raycap.images.reading import Picture, Reading, read_picture, read_whole

# The parent ends a child whose time is up. If the parent is gone, the child ends itself later.
GRACE_SECONDS = 5
# Messages of decoders that got no memory: MemoryError, "out of memory error", ... -9 is Pillow's.
NO_MEMORY = re.compile(r"memory|bad_alloc|allocat|decoder error -9$", re.I)
# A picture that failed, and may need more than the memory limit at this rate, says so.
BYTES_A_PIXEL = 6
IN_DOUBT = " (or it takes too much memory, --reading.max-memory)"
# A child whose address space has grown by this many bytes is replaced: some decoders leak.
MOST_GROWTH = 128 * 2**20

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Read pictures until the pipe is closed."""
    requests, answers, exchange, parent, max_memory = map(int, sys.argv[1:])
    _end_with(parent)
    _use_one_thread()
    settings = functools.lru_cache(maxsize=4)(pickle.loads)
    mapped_at_start = _mapped()
    with os.fdopen(requests, "rb") as incoming, os.fdopen(answers, "wb", buffering=0) as outgoing:
        outgoing.write(READY)
        while head := incoming.read(REQUEST.size):
            count, settings_size = REQUEST.unpack(head)
            reading, intake = settings(incoming.read(settings_size))
            sizes = [size for [size] in SIZE.iter_unpack(incoming.read(count * SIZE.size))]
            _limit_memory(max_memory)
            pictures = []
            start, free = 0, sum(sizes)  # of the next body, and of the room behind all bodies
            for size in sizes:
                _set_alarm(reading.timeout + GRACE_SECONDS)
                picture = _read(exchange, start, size, reading, intake)
                pictures.append(_answer(picture, exchange, free, max_memory))
                start += size
                free += 0 if picture.pixels is None else picture.pixels.nbytes
                del picture
            _limit_memory(None)
            retire = _mapped() - mapped_at_start > MOST_GROWTH
            answer = json.dumps({"pictures": pictures, "retire": retire}).encode()
            _set_alarm(0)
            outgoing.write(ANSWER.pack(len(answer)) + answer)


def _read(
    exchange: int, start: int, size: int, reading: Reading, intake: Intake | None
) -> Picture:
    try:
        data = os.pread(exchange, size, start)
    except MemoryError:
        return Picture(None, "", 0, 0, "too little memory")
    return read_whole(data, reading) if intake is None else read_picture(data, reading, intake)


def _answer(picture: Picture, exchange: int, free: int, max_memory: int) -> dict[str, Any]:
    """The answer to the parent about the picture; its pixels go into the exchange file."""
    shape = None
    if picture.pixels is not None:
        shape = picture.pixels.shape
        left = picture.pixels.data.cast("B")
        while left:
            written = os.pwrite(exchange, left, free)
            left, free = left[written:], free + written
    no_memory = bool(NO_MEMORY.search(picture.error))
    if picture.error.startswith("too much memory"):
        no_memory = False  # rejected by the header: nothing was decoded
    error = picture.error
    # Some decoders report a lack of memory as a broken file, which only large pictures leave open.
    if error and picture.width * picture.height * BYTES_A_PIXEL > max_memory:
        error += IN_DOUBT
    return {
        "format": picture.format,
        "width": picture.width,
        "height": picture.height,
        "error": error,
        "shape": shape,
        "no_memory": no_memory,
    }


def _end_with(parent: int) -> None:
    """Die with the parent, even in the middle of a decoder that never returns."""
    # Ctrl-C is for the parent, which then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _use_one_thread() -> None:
    """Every thread of a decoder reserves address space, which counts towards the memory limit."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.options.DECODE_THREADS = 1


def _limit_memory(more: int | None) -> None:
    """Let this process map `more` bytes than now; None removes the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = hard
    if more is not None and (mapped := _mapped()):
        soft = mapped + more if hard == resource.RLIM_INFINITY else min(hard, mapped + more)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _mapped() -> int:
    """Bytes of address space in use; 0 if the system does not say: then there is no limit."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _set_alarm(seconds: float) -> None:
    """After so many seconds SIGALRM ends the process, in C code too; 0 for no alarm."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
