"""Why a picture could not be fetched, in words that give no password or token away."""

import re

_SECRETS = re.compile(r"(?<=://)[^/\s]*@|\?[^\s'\"]*")  # user:password@ and ?signature=...


class FetchError(Exception):
    """A fetch that failed for a known reason; `again` if another try may help, after at least `wait` seconds."""

    def __init__(self, reason: str, again: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again
        self.wait = wait


def scrubbed(text: str) -> str:
    """One short line of `text` without what may be secret in the URLs that it quotes."""
    line = " ".join(_SECRETS.sub("", text).split())
    return line if len(line) <= 200 else line[:199] + "…"


def unforeseen(error: Exception) -> str:
    """An exception that nobody thought of, as a reason: better one odd row than a dead job."""
    return f"{type(error).__name__}: {scrubbed(str(error))}".rstrip(": ")


def too_large(max_bytes: int) -> FetchError:
    """The one reason for every way of passing the cap, so that they count as one."""
    return FetchError(f"larger than {max_bytes / 1e6:g} MB (--fetch.max-bytes)")


def too_late(seconds: float) -> FetchError:
    """The one reason for every way of passing the deadline."""
    return FetchError(f"no answer within {seconds:g} s (--fetch.deadline)")
