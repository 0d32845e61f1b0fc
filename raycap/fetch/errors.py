"""Reasons why a picture could not be fetched, without passwords and tokens."""

import re

_SECRETS = re.compile(r"(?<=://)[^/\s]*@|\?[^\s'\"]*")  # user:password@ and ?signature=...


class FetchError(Exception):
    """A fetch that failed for a known reason.

    `again` says whether a retry may help, after at least `wait` seconds. `no_answer` says that the
    host did not answer in time, or not at all.
    """

    def __init__(
        self, reason: str, again: bool = False, wait: float = 0.0, no_answer: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again
        self.wait = wait
        self.no_answer = no_answer


def scrubbed(text: str) -> str:
    """Returns one short line of `text` without what may be secret in the URLs that it quotes."""
    line = " ".join(_SECRETS.sub("", text).split())
    return line if len(line) <= 200 else line[:199] + "…"


def unexpected(error: Exception) -> str:
    """The reason for an unexpected exception: it costs one row, not the job."""
    return f"{type(error).__name__}: {scrubbed(str(error))}".rstrip(": ")


# One text for each limit, however it is exceeded, so that reports count them together.


def too_large(max_bytes: int) -> FetchError:
    return FetchError(f"larger than {max_bytes / 1e6:g} MB (--fetch.max-bytes)")


def too_late(seconds: float) -> FetchError:
    return FetchError(f"no answer within {seconds:g} s (--fetch.deadline)", no_answer=True)


def headers_too_large() -> FetchError:
    return FetchError("headers without end (more than 100, or more than 256 kB)")


def framing_too_large() -> FetchError:
    """For bytes that carry no body: sizes of tiny chunks, trailers."""
    return FetchError("a body framed without end (tiny chunks, or trailers)")
