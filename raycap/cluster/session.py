"""A Ray to work on: the cluster that was named, or one of our own that ends with the command. Every command that
needs Ray enters here."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator

import ray
from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError, RayTaskError, RpcError

from raycap.cluster import Cluster
from raycap.cluster.local_ray import local_ray
from raycap.errors import UserError
from raycap.terminal import write_err

# Bytes of a block between two acts. Ray's own 128 MiB would hold a listing back until half a million rows are
# known; this is some 25 thousand rows of a manifest, or 28 decoded pictures.
BLOCK_BYTES = 4 * 2**20
SECONDS_TO_JOIN, SECONDS_BETWEEN_TRIES = 20.0, 1.0


@contextlib.contextmanager
def session(cluster: Cluster, workers_heard: bool = True) -> Iterator[None]:
    """Join or start Ray, and leave it as it was found. A UserError raised in a task comes out as itself.

    `workers_heard` shows here what other processes write to their terminals.
    """
    with contextlib.nullcontext() if ray.is_initialized() else _started(cluster, workers_heard):
        _quieten()
        DataContext.get_current().target_max_block_size = BLOCK_BYTES
        try:
            yield
        except RayError as error:
            refusal = user_error_within(error)
            if refusal is None:
                raise
            raise refusal from error
        except ExecutionTimeoutError as error:
            waited = DataContext.get_current().execution_no_progress_timeout_s
            raise UserError(
                f"no row was finished for {waited:,.0f} s: is a processor of the cluster free (`ray status`), and "
                "does the disc or network that holds the pictures answer?"
            ) from error


@contextlib.contextmanager
def _started(cluster: Cluster, workers_heard: bool) -> Iterator[None]:
    """The cluster that was named, or a Ray of our own."""
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
    """Ray itself tries for some time to reach the cluster. What fails at once is tried again: a head that has just
    started refuses connections."""
    # Else Ray prints a line for each node that its autoscaler cannot add; what is waited for, raycap says itself.
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
    begun = time.monotonic()
    while True:
        try:
            ray.init(address, logging_level=logging.WARNING, log_to_driver=workers_heard)
            return
        except (ConnectionError, ValueError, RuntimeError, RpcError) as error:
            ray.shutdown()
            transient = isinstance(error, ConnectionError | RpcError)
            if not transient or time.monotonic() - begun > SECONDS_TO_JOIN:
                raise UserError(
                    f"cannot reach the Ray cluster at {address!r} (--cluster.address, RAY_ADDRESS): {error}"
                ) from error
            time.sleep(SECONDS_BETWEEN_TRIES)


def _quieten() -> None:
    """Ray Data tells its plans, draws its own bars, and logs each error that it also raises; raycap says these."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    for name in ("exceptions", "_internal.execution.streaming_executor_state"):
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)
    DataContext.get_current().enable_progress_bars = False


def error_line(error: BaseException) -> str:
    """What went wrong at the bottom of Ray's wrappers, in one line; a wrapper's word where the bottom has none."""
    said = ""
    seen: BaseException | None = error
    while seen is not None:
        if lines := str(seen).strip().splitlines():
            said = f"{type(seen).__name__}: {lines[-1] if isinstance(seen, RayTaskError) else lines[0]}"
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    return said[:300] or type(error).__name__


def user_error_within(error: BaseException) -> UserError | None:
    """Ray wraps what a task raised, sometimes twice."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen) is UserError:  # Ray's own wrappers are subclasses of what they wrap
            return seen
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    return None
