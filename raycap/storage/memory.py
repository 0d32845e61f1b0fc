"""How Arrow takes and gives back memory."""

import contextlib
from collections.abc import Iterator

import pyarrow as pa


@contextlib.contextmanager
def held_briefly() -> Iterator[None]:
    """In the block Arrow uses the system's allocator. Its own one keeps several times what is in
    use, where many small arrays are made and dropped."""
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(usual)


def give_back() -> None:
    """Give the system what was freed."""
    pa.default_memory_pool().release_unused()
