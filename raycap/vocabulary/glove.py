"""GloVe vectors for a vocabulary: one pass over the text file keeps the rows of the vocabulary."""

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
_MALFORMED_NAMED = 10  # malformed lines that an error message names
_MALFORMED_SHARE = 0.01  # of all lines; with more the file is not GloVe text


@dataclass(frozen=True)
class GloveVectors:
    """An embedding matrix for a vocabulary, and how many of its words the file had."""

    matrix: npt.NDArray[np.float32]  # [V, E], the row of `<pad>` is zero
    found: int  # words with a vector of their own
    total: int  # words of the vocabulary, special tokens apart
    missing: tuple[str, ...]  # words without one, the most frequent first: theirs is random
    malformed: tuple[str, ...]  # the first malformed lines, each with its number and reason
    malformed_count: int


def load_glove(path: str, vocabulary: Vocabulary, seed: int = 0) -> GloveVectors:
    """Read GloVe (or word2vec) text at `path`, a path or fsspec URI, plain, .gz or .zip.

    Words that the file lacks get random rows, drawn with `seed`, with the mean and standard
    deviation of those that it has. Only the lines of the vocabulary's words are parsed; of the
    others the number of fields is checked.
    """
    reader = _Reader(path, vocabulary)
    try:
        with ExitStack() as stack:
            reader.read(_open(path, stack))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such GloVe file") from error
    except (EOFError, zlib.error, zipfile.BadZipFile, OSError) as error:
        raise UserError(
            f"{path}: cannot be read to its end ({error}): is the file whole?"
        ) from error
    # fsspec: a protocol that is unknown or not installed
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    return reader.result(seed)


class _Reader:
    """The state of one pass over a file."""

    def __init__(self, path: str, vocabulary: Vocabulary) -> None:
        self.path = path
        self.words = vocabulary.whole_words()
        self.wanted = {word.encode(): index for index, word in enumerate(self.words) if word}
        self.rows: dict[int, npt.NDArray[np.float32]] = {}  # index in `words` -> [E]
        self.width = 0  # numbers in a line, as in the first one
        self.lines = 0
        self.malformed: list[str] = []
        self.malformed_count = 0

    def read(self, file: Any) -> None:
        buffered = io.BufferedReader(file, 1 << 20)  # twice as fast for .zip
        for line in iter(lambda: buffered.readline(_LONGEST_LINE), b""):
            self.lines += 1
            if len(line) == _LONGEST_LINE:
                raise UserError(
                    f"{self.path}: line {self.lines} is longer than {_LONGEST_LINE} bytes: not "
                    "GloVe text"
                )
            if self.lines == 1 and _is_header(line):  # of word2vec: number of words, width
                self.width = int(line.split()[1])
            else:
                self._read_line(line.rstrip())

    def _read_line(self, line: bytes) -> None:
        if not self.width:
            fields = line.split(b" ")
            if len(fields) < 2 or _numbers(fields[1:]) is None:
                raise UserError(
                    f"{self.path}: not GloVe text: its first line is not a word and its numbers"
                )
            self.width = len(fields) - 1
        spaces = line.count(b" ")
        if spaces < self.width or (
            # More fields are a word with spaces ("at name@domain.com"), which no vocabulary holds.
            spaces > self.width and _numbers(line.rsplit(b" ", self.width)[1:]) is None
        ):
            self._add_malformed(line, f"{spaces} numbers, not {self.width}")
        elif spaces == self.width:
            index = self.wanted.get(line[: line.index(b" ")])
            # Of a word that occurs twice, the first is the more frequent one.
            if index is not None and index not in self.rows:
                row = _numbers(line.split(b" ")[1:])
                if row is None:
                    self._add_malformed(line, "a field that is not a finite number")
                else:
                    self.rows[index] = row

    def _add_malformed(self, line: bytes, reason: str) -> None:
        self.malformed_count += 1
        if len(self.malformed) < _MALFORMED_NAMED:
            start = line[:20].decode(errors="replace")
            self.malformed.append(f"line {self.lines} ({start!r}): {reason}")

    def result(self, seed: int) -> GloveVectors:
        allowed = max(self.lines * _MALFORMED_SHARE, _MALFORMED_NAMED)
        if self.malformed_count > allowed:
            raise UserError(
                f"{self.path}: {self.malformed_count} of {self.lines} lines are malformed: "
                + "; ".join(self.malformed)
            )
        if not self.rows:
            raise UserError(
                f"{self.path}: none of the vocabulary's {len(self.words)} words is in it"
            )
        known = np.stack(list(self.rows.values()))  # [found, E]
        shape = (len(SPECIAL_TOKENS) + len(self.words), self.width)
        random = np.random.default_rng(seed)
        matrix = random.normal(known.mean(0), known.std(0), shape).astype(np.float32)  # [V, E]
        matrix[PAD] = 0
        matrix[np.array(list(self.rows)) + len(SPECIAL_TOKENS)] = known
        return GloveVectors(
            matrix,
            found=len(self.rows),
            total=len(self.words),
            missing=tuple(
                word for i, word in enumerate(self.words) if word and i not in self.rows
            ),
            malformed=tuple(self.malformed),
            malformed_count=self.malformed_count,
        )


def _open(path: str, stack: ExitStack) -> Any:
    file = stack.enter_context(open_uri(path))
    if path.endswith(".gz"):
        return stack.enter_context(gzip.open(file))
    if not path.endswith(".zip") or path.startswith("zip://"):
        return file
    archive = stack.enter_context(zipfile.ZipFile(file))
    members = [name for name in archive.namelist() if not name.endswith("/")]
    if len(members) != 1:
        chosen = f"zip://{members[0] if members else 'NAME'}::{path}"
        raise UserError(
            f"{path}: holds {len(members)} files ({', '.join(members)}): choose one, as in "
            f"{chosen}"
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
