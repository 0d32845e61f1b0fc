"""Which of several fetchers asks a host: always the same one, so that it alone keeps the host's
limits."""

import zlib

from raycap.fetch.errors import FetchError
from raycap.fetch.web import host_of
from raycap.uris import is_web


def owner_of(uri: str, fetchers: int) -> int:
    """The number of the fetcher that begins with a URI."""
    if not is_web(uri):
        return _number(uri, fetchers)  # stores have no limits for each host
    try:
        return owner_of_host(host_of(uri), fetchers)
    except FetchError:
        return 0  # which gives the reason


def owner_of_host(host: str, fetchers: int) -> int:
    return _number(host, fetchers)


def _number(name: str, fetchers: int) -> int:
    return zlib.crc32(name.encode(errors="surrogatepass")) % fetchers
