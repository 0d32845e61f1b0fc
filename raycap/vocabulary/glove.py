"""GloVe vectors for a vocabulary: one pass over the text file, only the rows of the vocabulary kept."""

import gzip
import io
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raycap.errors import UserError
from raycap.storage import open_uri
from raycap.vocabulary.words import PAD, SPECIAL_TOKENS, Vocabulary

_LONGEST_LINE = 1 << 20  # bytes; a file without line ends must not fill the memory
_MALFORMED_NAMED = 10  # malformed lines that a message names
_MALFORMED_SHARE = 0.01  # of all lines; above it the file is not what it is said to be


@dataclass(frozen=True)
class Glove:
    """An embedding matrix for a vocabulary, and how much of it the file knew."""

    matrix: npt.NDArray[np.float32]  # [V, E], the row of `<pad>` is zero
    found: int  # words with a vector of their own
    total: int  # words of the vocabulary, special tokens apart
    missing: tuple[str, ...]  # words without one, the commonest first: theirs is random
    malformed: tuple[str, ...]  # the first malformed lines, each with its number and fault
    malformed_count: int


def load_glove(path: str, vocabulary: Vocabulary, seed: int = 0) -> Glove:
    """Read GloVe (or word2vec) text at `path`, a path or fsspec URI, plain, .gz or .zip.

    Words that the file lacks get random rows with the mean and spread of the found ones, from `seed`. Only lines of
    the vocabulary's words are parsed; of the others the number of fields is checked.
    """
    reader = _Reader(path, vocabulary)
    try:
        with ExitStack() as stack:
            reader.read(_opened(path, stack))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such GloVe file") from error
    except (EOFError, zlib.error, zipfile.BadZipFile, OSError) as error:
        raise UserError(
            f"{path}: cannot be read to its end ({error}): is the file whole?"
        ) from error
    except (
        ImportError,
        ValueError,
    ) as error:  # fsspec: a protocol that is unknown or not installed
        raise UserError(f"{path}: {error}") from error
    return reader.result(seed)


class _Reader:
    """The state of one pass over a file."""

    def __init__(self, path: str, vocabulary: Vocabulary) -> None:
        self.path = path
        self.words = vocabulary.words[len(SPECIAL_TOKENS) :]
        self.wanted = {word.encode(): place for place, word in enumerate(self.words)}
        self.rows: dict[int, npt.NDArray[np.float32]] = {}  # place in `words` -> [E]
        self.width = 0  # numbers in a line, from the first one
        self.lines = 0
        self.faults: list[str] = []
        self.fault_count = 0

    def read(self, file: Any) -> None:
        buffered = io.BufferedReader(file, 1 << 20)  # twice as fast for .zip
        for line in iter(lambda: buffered.readline(_LONGEST_LINE), b""):
            self.lines += 1
            if len(line) == _LONGEST_LINE:
                raise UserError(
                    f"{self.path}: line {self.lines} is longer than {_LONGEST_LINE} bytes: not GloVe text"
                )
            if self.lines == 1 and _is_header(line):  # word2vec's "how many, how wide"
                self.width = int(line.split()[1])
            else:
                self._take(line.rstrip())

    def _width(self, line: bytes) -> int:
        fields = line.split(b" ")
        if len(fields) < 2 or _numbers(fields[1:]) is None:
            raise UserError(
                f"{self.path}: not GloVe text: its first line is not a word and its numbers"
            )
        return len(fields) - 1

    def _take(self, line: bytes) -> None:
        self.width = self.width or self._width(line)
        if line.count(b" ") != self.width:
            # More fields are a word with spaces ("at name@domain.com", ". . ."), which no vocabulary holds.
            if (
                line.count(b" ") < self.width
                or _numbers(line.rsplit(b" ", self.width)[1:]) is None
            ):
                self._fault(line, f"{line.count(b' ')} numbers, not {self.width}")
            return
        place = self.wanted.get(line[: line.index(b" ")])
        if place is None or place in self.rows:  # the first of a doubled word is the commoner one
            return
        row = _numbers(line.split(b" ")[1:])
        if row is None:
            self._fault(line, "a field that is not a finite number")
        else:
            self.rows[place] = row

    def _fault(self, line: bytes, reason: str) -> None:
        self.fault_count += 1
        if len(self.faults) < _MALFORMED_NAMED:
            self.faults.append(
                f"line {self.lines} ({line[:20].decode(errors='replace')!r}): {reason}"
            )

    def result(self, seed: int) -> Glove:
        if (
            self.fault_count > self.lines * _MALFORMED_SHARE
            and self.fault_count > _MALFORMED_NAMED
        ):
            faults = "; ".join(self.faults)
            raise UserError(
                f"{self.path}: {self.fault_count} of {self.lines} lines are malformed: {faults}"
            )
        if not self.rows:
            raise UserError(
                f"{self.path}: none of the vocabulary's {len(self.words)} words is in it"
            )
        known = np.stack(list(self.rows.values()))  # [found, E]
        shape = (len(SPECIAL_TOKENS) + len(self.words), self.width)
        matrix = (
            np.random.default_rng(seed)
            .normal(known.mean(0), known.std(0), shape)
            .astype(np.float32)
        )
        matrix[PAD] = 0
        matrix[np.array(list(self.rows)) + len(SPECIAL_TOKENS)] = known
        missing = tuple(word for place, word in enumerate(self.words) if place not in self.rows)
        return Glove(
            matrix, len(self.rows), len(self.words), missing, tuple(self.faults), self.fault_count
        )


def _opened(path: str, stack: ExitStack) -> Any:
    file = stack.enter_context(open_uri(path))
    if not path.endswith(".zip") or path.startswith("zip://"):
        return stack.enter_context(gzip.open(file)) if path.endswith(".gz") else file
    archive = stack.enter_context(zipfile.ZipFile(file))
    members = [name for name in archive.namelist() if not name.endswith("/")]
    if len(members) != 1:
        chosen = f"zip://{members[0] if members else 'NAME'}::{path}"
        raise UserError(
            f"{path}: holds {len(members)} files ({', '.join(members)}): choose one, as in {chosen}"
        )
    return stack.enter_context(archive.open(members[0]))


def _is_header(line: bytes) -> bool:
    fields = line.split()
    return len(fields) == 2 and all(field.isdigit() for field in fields)


def _numbers(fields: list[bytes]) -> npt.NDArray[np.float32] | None:
    try:
        numbers = np.array([float(field) for field in fields], dtype=np.float32)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None
