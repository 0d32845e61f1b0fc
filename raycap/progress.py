"""The progress of long work: a bar on a terminal, elsewhere a line every ten seconds."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from raycap.terminal import printable, write_err

COMMONEST = 3


class Progress:
    """Counts rows done and failed. `total` may be a function that returns None until the number is
    known."""

    def __init__(
        self,
        what: str,
        total: int | Callable[[], int | None] | None = None,
        seconds_between_lines: float = 10.0,
    ) -> None:
        self._what = what
        self._ask_total = total if callable(total) else lambda: None
        self._total: int | None = None if callable(total) else total
        self._done = 0
        self._failed: Counter[Any] = Counter()
        self._start = self._last_line = time.monotonic()
        self._seconds_between_lines = seconds_between_lines
        # No bar in a log file: a bar there is thousands of half lines.
        self._bar = tqdm(desc=what, unit=" rows", smoothing=0.1) if sys.stderr.isatty() else None

    def add(self, done: int, failed: int | Mapping[Any, int]) -> None:
        """Add rows. `failed` is how many of them failed, or how many for each (status, reason)."""
        self._done += done
        self._failed.update({("failed", ""): failed} if isinstance(failed, int) else failed)
        self._total = self._total if self._total is not None else self._ask_total()
        if self._bar is not None:
            self._bar.total = self._total
            self._bar.set_postfix_str(self._failures(), refresh=False)
            self._bar.update(done)
        elif time.monotonic() - self._last_line >= self._seconds_between_lines:
            self._last_line = time.monotonic()
            write_err(f"{self}\n")

    def __str__(self) -> str:
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        done = f"{self._what}: {self._done:,} rows"
        if self._total is not None:
            left = max(0, self._total - self._done) / max(rate, 1e-9)
            clock = time.strftime("%a %H:%M", time.localtime(time.time() + left))
            done = f"{self._what}: {self._done:,} of {self._total:,} rows, ends about {clock}"
        return f"{done}, {rate:,.1f} rows/s, {self._failures()}"

    def _failures(self) -> str:
        commonest = ", ".join(
            f"{rows:,} {printable(reason)}"
            for (_, reason), rows in self._failed.most_common(COMMONEST)
            if reason
        )
        return f"{self._failed.total():,} failed" + (f" ({commonest})" if commonest else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
