"""Retries after transient faults of disks, networks and object stores.

Example: the fsync of a file on NFS fails with EIO once. `with_retries` writes the file a second
time, and the run goes on. A full disk or a missing permission is raised at once.
"""

import errno
import logging
import random
import socket
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Most stores and networks are back within a minute.
SECONDS_IN_ALL = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0

_ERRNOS = {
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "EAGAIN", "EINTR", "EBUSY", "ESTALE", "ENOLCK", "ENFILE", "ENOBUFS"),
        *("ETIMEDOUT", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "ENOTCONN", "EPIPE"),
        *("ENETUNREACH", "ENETDOWN", "ENETRESET", "EHOSTUNREACH", "EHOSTDOWN"),
        "ENOTEMPTY",  # something was written into a folder while it was being removed
    )
    if hasattr(errno, name)
}
_STATUSES = {408, 409, 425, 429, 500, 502, 503, 504}
# By name, because a client is imported only if its store is used. Subclasses are included.
_ERRORS = {
    *("aiohttp.ClientConnectionError", "aiohttp.ClientPayloadError"),
    *("azure.ServiceRequestError", "azure.ServiceResponseError"),
    *("botocore.ConnectionError", "botocore.HTTPClientError", "botocore.IncompleteReadError"),
    *("botocore.ResponseStreamingError",),
    *("google.TransportError",),
    *("http.IncompleteRead",),
    *("requests.ConnectionError", "requests.Timeout", "requests.ChunkedEncodingError"),
    *("urllib3.ProtocolError", "urllib3.TimeoutError", "urllib3.NewConnectionError"),
}
_CLIENTS = {"aiohttp", "azure", "botocore", "gcsfs", "google", "requests", "urllib3"}


def with_retries(function: Callable[[], Result], what: str) -> Result:
    """Returns `function()`. After a transient fault it is called again, for about a minute in all.

    Then the last error is raised. `function` must be idempotent. `what` is for the log.
    """
    until, pause = time.monotonic() + SECONDS_IN_ALL, FIRST_PAUSE
    while True:
        try:
            return function()
        except Exception as error:
            if not is_transient(error) or time.monotonic() + pause > until:
                raise
            log.warning("cannot %s (%s): trying again", what, error)
        # Random, so that many workers do not return at the same moment.
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, LONGEST_PAUSE)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed if it is repeated."""
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError):
        return False
    names = _names(error)
    if any(name.endswith(".SSLError") for name in names):  # a certificate stays wrong
        return False
    # s3fs raises EIO for an unknown HTTP status, with the response as the cause.
    status = _http_status(error) or (_http_status(error.__cause__) if error.__cause__ else None)
    if status is not None:
        return status in _STATUSES
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    return bool(names & _ERRORS)


def is_of_a_store(error: BaseException) -> bool:
    """Whether the error comes from a disk or a store."""
    packages = {name.partition(".")[0] for name in _names(error)}
    return isinstance(error, OSError) or bool(packages & _CLIENTS)


def _names(error: BaseException) -> set[str]:
    """The error's class and its bases, each with its package: botocore.ConnectionError."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}


def _http_status(error: BaseException) -> int | None:
    """The HTTP status in an error of a store's client, if it has one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        found = [getattr(error, name, None) for name in ("status", "status_code", "code")]
        found.append(getattr(response, "status_code", None))
    status = next((each for each in found if isinstance(each, int)), None)
    return status if status is not None and 100 <= status < 600 else None
