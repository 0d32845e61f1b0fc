"""The Ray session of a command: joins the cluster that the user names, or starts Ray locally."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator

import ray
from ray.exceptions import RayError, RayTaskError, RpcError

from raycap.cluster import Cluster
from raycap.cluster.local_ray import local_ray
from raycap.errors import UserError
from raycap.terminal import write_err

SECONDS_TO_JOIN, SECONDS_BETWEEN_TRIES = 20.0, 1.0


@contextlib.contextmanager
def session(cluster: Cluster, workers_heard: bool = True) -> Iterator[None]:
    """Join or start Ray, and disconnect at the end, unless Ray is already initialised.

    A UserError raised in a task is raised here as it is. With `workers_heard`, the output of other
    processes appears on this terminal.
    """
    joined = contextlib.nullcontext() if ray.is_initialized() else _joined(cluster, workers_heard)
    with joined:
        try:
            yield
        except RayError as error:
            user_error = find_user_error(error)
            if user_error is None:
                raise
            raise user_error from error


@contextlib.contextmanager
def _joined(cluster: Cluster, workers_heard: bool) -> Iterator[None]:
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(
        logging.ERROR
    )
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        write_err("raycap: starting Ray on this machine\n")
        with local_ray(cluster.cpus, workers_heard):
            yield
        return
    write_err(f"raycap: joining the Ray cluster at {address}\n")
    _join(address, workers_heard)
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str, workers_heard: bool) -> None:
    """Connect to the cluster. Ray repeats some attempts itself; others, such as a refused
    connection while the head is starting, are repeated here."""
    # Ray would print a line for each node that its autoscaler cannot add. raycap says what it
    # waits for.
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
    started = time.monotonic()
    while True:
        try:
            ray.init(address, logging_level=logging.WARNING, log_to_driver=workers_heard)
            return
        except (ConnectionError, ValueError, RuntimeError, RpcError) as error:
            ray.shutdown()
            may_pass = isinstance(error, ConnectionError | RpcError)
            if not may_pass or time.monotonic() - started > SECONDS_TO_JOIN:
                raise UserError(
                    f"cannot reach the Ray cluster at {address!r} "
                    f"(--cluster.address, RAY_ADDRESS): {error}"
                ) from error
            time.sleep(SECONDS_BETWEEN_TRIES)


def root_cause(error: BaseException) -> str:
    """One line with the cause of an error, without Ray's wrappers. If the cause has no message,
    that of a wrapper."""
    message = ""
    cause: BaseException | None = error
    while cause is not None:
        if lines := str(cause).strip().splitlines():
            line = lines[-1] if isinstance(cause, RayTaskError) else lines[0]
            message = f"{type(cause).__name__}: {line}"
        cause = _cause_of(cause)
    return message[:300] or type(error).__name__


def find_user_error(error: BaseException) -> UserError | None:
    """The UserError that a task raised. Ray wraps it, sometimes twice."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause) is UserError:  # Ray's wrappers are subclasses of what they wrap
            return cause
        cause = _cause_of(cause)
    return None


def _cause_of(error: BaseException) -> BaseException | None:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error.__cause__
