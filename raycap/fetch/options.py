"""The knobs of fetching."""

from dataclasses import dataclass, fields

from raycap import __version__
from raycap.errors import UserError
from raycap.fetch.trust import Trust, of_prefixes


@dataclass(frozen=True)
class Fetch:
    """How pictures are fetched; proxies named in the environment are not used."""

    connect_timeout: float = 5.0
    """Seconds for one connection to be made."""
    read_timeout: float = 10.0
    """Seconds without a byte before a connection is given up."""
    deadline: float = 30.0
    """Seconds for one picture in all, retries and redirects included; waiting for its turn at a host is not."""
    max_bytes: int = 50_000_000
    """Largest picture in bytes, as sent and as unpacked."""
    retries: int = 3
    """Further tries after a broken connection, HTTP 429 or 5xx."""
    backoff: float = 0.5
    """Seconds that the first retry waits at most, twice as much with each further one; drawn at random below it."""
    threads: int = 64
    """Requests in flight in one task."""
    per_host: int = 16
    """Requests in flight to one host from one task."""
    host_rate: float = 0.0
    """Requests a second to one host from one task, 0 for no limit."""
    max_redirects: int = 5
    """Redirects followed for one picture."""
    user_agent: str = f"raycap/{__version__} (captions for pictures)"
    """What servers are told about who asks; name a contact for large jobs."""
    allow_private: bool = False
    """Whether URLs may lead to private, loopback and other addresses that are not of the public Internet."""
    trust: tuple[str, ...] = ()
    """Places that lists and tables may name besides what lies below their own folder or in their own bucket:
    absolute paths of folders, or the beginning of URIs (s3://bucket, ftp://host/)."""
    allow_file: bool = False
    """The same as --fetch.trust /: lists and tables may name every local file."""
    ignore_robots_tag: bool = False
    """Whether to fetch pictures that their server keeps from AI (X-Robots-Tag: noai or noimageai)."""

    def __post_init__(self) -> None:
        least = {
            "retries": 0,
            "max_redirects": 0,
            "host_rate": 0,
            "backoff": 0,
            "max_bytes": 1,
            "threads": 1,
            "per_host": 1,
        }
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if name in least and not value >= least[name]:
                raise UserError(f"fetch.{name} must be at least {least[name]}, not {value}")
            if name in ("connect_timeout", "read_timeout", "deadline") and not 0 < value < float(
                "inf"
            ):
                raise UserError(f"fetch.{name} must be a number of seconds above 0, not {value}")
        if not (self.user_agent.isascii() and self.user_agent.isprintable()):
            raise UserError(
                "fetch.user_agent must be plain printable ASCII: servers get it as a header"
            )
        self.trusted()

    def trusted(self) -> Trust:
        """What --fetch.trust permits."""
        return of_prefixes((*self.trust, "/") if self.allow_file else self.trust, "fetch.trust")
