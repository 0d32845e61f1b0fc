"""Prints text to the terminal. Keys, captions and reasons come from data that anybody may have
written, so control characters in them are escaped."""

import logging
import sys
import traceback
import unicodedata
from types import TracebackType
from typing import TextIO

# Escape sequences (Cc), characters that turn the direction of text or are not seen (Cf), halves of
# characters (Cs), and the two line ends of Unicode (Zl, Zp).
_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Emoji and some scripts are written with these two, and they move nothing.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """The text as one line that is safe to print: control characters, line ends and characters
    that change the direction of text are escaped."""
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def write_out(text: str) -> None:
    """Print lines of text to stdout, with their own line ends."""
    _write(sys.stdout, text)


def write_err(text: str) -> None:
    """Print lines of text to stderr."""
    _write(sys.stderr, text)


def lines_of(text: str) -> str:
    """The text with its own line ends, and each line safe to print."""
    return "\n".join(printable(line) for line in text.split("\n"))


def log_to_stderr() -> None:
    """Print warnings of raycap's own loggers in the same way."""
    log = logging.getLogger("raycap")
    if not any(isinstance(handler, _Handler) for handler in log.handlers):
        log.addHandler(_Handler(logging.WARNING))


def print_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A `sys.excepthook`: a traceback quotes what the program read."""
    write_err("".join(traceback.format_exception(kind, error, trace)))


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        write_err(f"{printable(self.format(record))}\n")


def _escaped(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in _ESCAPED:
        return character
    return (
        character.encode("ascii", "backslashreplace").decode()
        if ord(character) > 127
        else repr(character)[1:-1]
    )


def _write(stream: TextIO, text: str) -> None:
    # A terminal that cannot show a letter gets its number instead of an error.
    encoding = stream.encoding or "utf-8"
    stream.write(lines_of(text).encode(encoding, "backslashreplace").decode(encoding))
