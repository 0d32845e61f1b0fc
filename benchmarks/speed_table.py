"""The table at the top of docs/speed.md: its rows, written from measured figures or kept."""

import platform
import statistics
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import NamedTuple

from json_figures import Figures

BEGIN = "<!-- written by `python benchmarks/all.py --write`: rows that it cannot measure stay -->"
END = "<!-- end of what benchmarks/all.py writes -->"
COLUMNS = ("what", "against", "ratio", "rounds", "machine", "command")
# Units of a processor that change what is fast.
UNITS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


@dataclass(frozen=True)
class Row:
    """A row whose figures one benchmark measures."""

    what: str
    against: str
    ratio: str
    """The cell, with the names of figures: `{small:.2f} (PSNR at least {psnr:.0f} dB)`."""

    @property
    def name(self) -> tuple[str, str]:
        return self.what, self.against

    def names(self) -> list[str]:
        """The figures in the cell. The spread is that of the first one."""
        return [name for _, name, _, _ in string.Formatter().parse(self.ratio) if name]

    def cells(self, rounds: Sequence[Figures], where: str, command: str) -> list[str] | None:
        """The row, from the figures of each round; None if one of them was not measured."""
        names = self.names()
        if not rounds or any(name not in figures for figures in rounds for name in names):
            return None
        found = {name: _middle([figures[name] for figures in rounds]) for name in names}
        return [
            self.what,
            self.against,
            self.ratio.format_map(found),
            self._rounds([figures[names[0]] for figures in rounds]),
            where,
            command,
        ]

    def _rounds(self, values: Sequence[float | str]) -> str:
        """How many there were, and the least and the highest figure."""
        first = next(spec for _, name, spec, _ in string.Formatter().parse(self.ratio) if name)
        if len(values) == 1:
            return "1"
        return f"{len(values)}: {min(values):{first}} to {max(values):{first}}"


def _middle(values: Sequence[float | str]) -> float | str:
    numbers = [value for value in values if not isinstance(value, str)]
    return statistics.median(numbers) if numbers else values[-1]


class Measured(NamedTuple):
    """The rows of one benchmark, and what its rounds measured."""

    rows: Sequence[Row]
    rounds: Sequence[Figures]
    command: str


def updated(text: str, found: Sequence[Measured], where: str) -> str:
    """The page with the rows that were measured. All other rows and the whole rest stay."""
    before, table, after = _parts(text)
    kept = _rows_of(table)
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for measured in found:
        command = measured.command
        for row in measured.rows:
            cells = row.cells(measured.rounds, where, command)
            old = kept.pop(row.name, None)
            if cells is not None:
                lines.append(_line(cells))
            elif old is not None:
                lines.append(old)
            else:
                continue
            command = ""  # stands in the first row of a benchmark only
    return "\n".join([before + BEGIN, *lines, *kept.values(), END + after])


def table_of(text: str) -> str:
    return _parts(text)[1].strip() + "\n"


def _parts(text: str) -> tuple[str, str, str]:
    """What stands before, between and behind the marks."""
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"docs/speed.md needs the lines\n{BEGIN}\n{END}\naround its first table")
    return before, table, after


def _rows_of(table: str) -> dict[tuple[str, str], str]:
    """The lines of a table without its head, by their first two cells."""
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return {(cells[0], cells[1]): line for line in lines for cells in [_cells(line)]}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def machine(info: Path = Path("/proc/cpuinfo")) -> str:
    """Where figures are measured, and when."""
    facts: dict[str, str] = {}
    if info.exists():
        facts = _facts(info.read_text(errors="replace"))
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = facts.get("flags", "").split()
    unit = next((f", {unit}" for unit in UNITS if unit in flags), "")
    return f"{cpu_count()} x {name}{unit}; {time.strftime('%Y-%m-%d')}"


def _facts(text: str) -> dict[str, str]:
    """The first processor, as Linux describes it."""
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
