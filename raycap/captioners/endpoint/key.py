"""The API key: read where it is used, sent to the server, and never shown.

The options hold the name of an environment variable or of a file, never the key, so it is in no
config, `run.json` or pickle.
"""

import ipaddress
import os
from typing import NoReturn
from urllib.parse import urlsplit

from raycap.errors import UserError
from raycap.storage import read_uri

DEFAULT_VARIABLE = "OPENAI_API_KEY"
LONGEST_KEY = 10_000
# A text that has so many letters of the key in a row quotes it.
TELLTALE = 8


class ApiKey:
    """A secret text. Its repr says nothing, and it cannot be pickled."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "ApiKey(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key is not sent to other processes")

    def header(self) -> str:
        """The value of the header Authorization."""
        return f"Bearer {self._text}"

    def is_quoted_in(self, text: str) -> bool:
        """Whether a text contains the key or a part of it."""
        size = min(TELLTALE, len(self._text))
        starts = range(len(self._text) - size + 1)
        return any(self._text[start : start + size] in text for start in starts)

    def removed_from(self, text: str) -> str:
        """The text, with "[API key]" in the place of the key."""
        return text.replace(self._text, "[API key]")


def find_key(variable: str, file: str, urls: tuple[str, ...]) -> ApiKey | None:
    """The key in a file or an environment variable; None if there is none.

    Without a name it is OPENAI_API_KEY, and only where the connection is encrypted or stays on
    this machine: a key for a hosted service must not reach a server on the network by accident.
    """
    if file:
        try:
            text = read_uri(file, LONGEST_KEY).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
            raise UserError(
                f"cannot read the API key in {file} (--captioner.key-file): {reason}; it must be "
                "readable on every machine that has workers"
            ) from None
        return _checked(text, f"the file {file}")
    if variable:
        if not os.environ.get(variable, "").strip():
            raise UserError(
                f"the environment variable {variable} (--captioner.key-env) is not set on the "
                "machine of this process: set it on all machines, or give --captioner.key-file"
            )
        return _checked(os.environ[variable].strip(), f"the environment variable {variable}")
    text = os.environ.get(DEFAULT_VARIABLE, "").strip()
    if not text or not all(_is_private_way(url) for url in urls):
        return None
    return _checked(text, f"the environment variable {DEFAULT_VARIABLE}")


def _checked(text: str, place: str) -> ApiKey:
    is_header = text.isascii() and text.isprintable() and " " not in text
    if not text or len(text) > LONGEST_KEY or not is_header:
        raise UserError(f"{place} holds no API key: one line of ASCII text without spaces")
    return ApiKey(text)


def _is_private_way(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
