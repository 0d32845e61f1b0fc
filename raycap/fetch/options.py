"""The options of fetching."""

import math
from dataclasses import dataclass

from raycap import __version__
from raycap.errors import UserError
from raycap.fetch.trust import Trust, of_prefixes


@dataclass(frozen=True)
class Fetch:
    """How pictures are fetched. Proxies named in the environment are not used."""

    connect_timeout: float = 5.0
    """Seconds to open a connection."""
    read_timeout: float = 10.0
    """Seconds to wait for the next bytes of a response."""
    deadline: float = 30.0
    """Seconds for one picture, with retries and redirects; waiting for a host's limit does not
    count."""
    max_bytes: int = 50_000_000
    """Largest picture in bytes, as sent and as decompressed."""
    retries: int = 3
    """Retries after a broken connection, HTTP 429 or 5xx."""
    backoff: float = 0.5
    """Longest wait before the first retry in seconds, doubled for each further one; the wait is
    drawn at random below it."""
    threads: int = 64
    """Requests in flight in one process. Those that take longer than half a second, and others to
    such hosts, do not count: up to 1,024 of them are in flight besides."""
    per_host: int = 16
    """Requests in flight to one host, from all machines of a job."""
    host_rate: float = 0.0
    """Requests a second to one host, from all machines of a job, 0 for no limit."""
    host_failures: int = 10
    """Requests in a row without an answer after which a host is taken for dead, if other hosts
    answer: its other pictures fail at once, for a minute, then for two, up to 15. 0: never."""
    max_redirects: int = 5
    """Redirects followed for one picture."""
    user_agent: str = f"raycap/{__version__} (captions for pictures)"
    """The User-Agent header; name a contact for large jobs."""
    allow_private: bool = False
    """Whether URLs may lead to private, loopback and other non-public addresses."""
    trust: tuple[str, ...] = ()
    """What lists and tables may name besides files below their own folder or in their own bucket:
    absolute paths of folders, or beginnings of URIs (s3://bucket, ftp://host/)."""
    allow_file: bool = False
    """The same as --fetch.trust /: lists and tables may name every local file."""
    ignore_robots_tag: bool = False
    """Whether to fetch pictures whose server forbids AI (X-Robots-Tag: noai or noimageai)."""

    def __post_init__(self) -> None:
        for name in ("retries", "max_redirects", "host_rate", "host_failures", "backoff"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{_flag(name)} must be at least 0, not {getattr(self, name)}")
        for name in ("max_bytes", "threads", "per_host"):
            if not getattr(self, name) >= 1:
                raise UserError(f"{_flag(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("connect_timeout", "read_timeout", "deadline"):
            seconds = getattr(self, name)
            if not 0 < seconds < math.inf:
                raise UserError(
                    f"{_flag(name)} must be a number of seconds above 0, not {seconds}"
                )
        if not (self.user_agent.isascii() and self.user_agent.isprintable()):
            raise UserError("--fetch.user-agent must be printable ASCII: it is sent as a header")
        self.trusted()

    def trusted(self) -> Trust:
        """Returns what --fetch.trust permits."""
        return of_prefixes((*self.trust, "/") if self.allow_file else self.trust, "--fetch.trust")


def _flag(name: str) -> str:
    return f"--fetch.{name.replace('_', '-')}"
