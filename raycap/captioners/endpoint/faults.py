"""What can go wrong with one request, and what it says about the picture and the server."""

from enum import Enum, auto

from raycap.captioners.endpoint.key import ApiKey

LONGEST_QUOTE = 300


class Kind(Enum):
    """What to do about a fault."""

    REFUSED = auto()
    """The server does not take this request, and would not take it again."""
    NO_ACCESS = auto()
    """The server does not take any request with this key."""
    BAD_ANSWER = auto()
    """An answer came that cannot be used. The next one may be better."""
    BUSY = auto()
    """The server asks for fewer requests."""
    LOST = auto()
    """No answer came: a broken connection, a timeout, a gateway that misses its server."""
    UNREACHABLE = auto()
    """No connection: the request was not sent."""


class Fault(Exception):
    """Why a request has no usable answer.

    `reason` becomes a row's error message. Up to its first colon it is one of few texts, without
    numbers and hosts, so that rows can be counted by it.
    """

    def __init__(self, kind: Kind, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason
        self.pause = pause
        """Seconds that the server asks to wait, if it does."""


def quoted(text: str, key: ApiKey | None) -> str:
    """Text of a server as one short line for a message; without it if it quotes the key."""
    line = " ".join(text[: 4 * LONGEST_QUOTE].split())
    if key is not None and key.is_quoted_in(text):
        return "(a text that quotes the API key)"
    return line if len(line) <= LONGEST_QUOTE else f"{line[:LONGEST_QUOTE]}..."
