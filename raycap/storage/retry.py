"""Faults that pass by themselves, of discs, networks and object stores: what failed with one is tried again.

Example: the fsync of a file on NFS answers EIO once. `with_retries` writes the file a second time, and the run goes
on. A full disc or a missing permission does not pass: it is raised at once.
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

# A store that restarts, or a network that is rerouted, is back within a minute. What lasts longer needs a person.
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
# By name, for a client is imported only where its store is used. Subclasses count too.
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


def with_retries(act: Callable[[], Result], what: str) -> Result:
    """What `act` returns. It is called again, after a pause, while it fails with a fault that may pass, for about a
    minute in all; the last error is raised as it is. Calling `act` twice must do what calling it once does."""
    until, pause = time.monotonic() + SECONDS_IN_ALL, FIRST_PAUSE
    while True:
        try:
            return act()
        except Exception as error:
            if not is_transient(error) or time.monotonic() + pause > until:
                raise
            log.warning("cannot %s (%s): trying again", what, error)
        time.sleep(
            pause * random.uniform(0.5, 1)
        )  # so that many workers do not all come back at the same moment
        pause = min(2 * pause, LONGEST_PAUSE)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may work a little later."""
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError):
        return False
    names = _names(error)
    if any(name.endswith(".SSLError") for name in names):  # a certificate stays wrong
        return False
    # s3fs turns a status that it does not know into EIO, with the answer as the cause.
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
    """Whether it says that a disc or a store did not do what it was asked."""
    packages = {name.partition(".")[0] for name in _names(error)}
    return isinstance(error, OSError) or bool(packages & _CLIENTS)


def _names(error: BaseException) -> set[str]:
    """The error's class and those above it, each as its package and its name: botocore.ConnectionError."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}


def _http_status(error: BaseException) -> int | None:
    """The status that a store answered with, where the error says it; each client says it in its own way."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = next(
            (
                found
                for holder, name in (
                    (error, "status"),
                    (error, "status_code"),
                    (error, "code"),
                    (answer, "status_code"),
                )
                if isinstance(found := getattr(holder, name, None), int)
            ),
            None,
        )
    return status if isinstance(status, int) and 100 <= status < 600 else None
