"""How Ray Data runs in a session. Only `raycap inspect` uses it: it takes a second to load."""

import contextlib
import logging
from collections.abc import Iterator

from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError

from raycap.errors import UserError

# Size of a block between two operators of Ray Data. With Ray's own 128 MiB no picture would be
# read before half a million rows are listed. This is about 25,000 manifest rows, or 28 decoded
# pictures.
BLOCK_BYTES = 4 * 2**20


@contextlib.contextmanager
def ray_data() -> Iterator[None]:
    """Small blocks and no output. Raises UserError if nothing is finished for a long time."""
    _silence()
    DataContext.get_current().target_max_block_size = BLOCK_BYTES
    try:
        yield
    except ExecutionTimeoutError as error:
        seconds = DataContext.get_current().execution_no_progress_timeout_s
        raise UserError(
            f"no row was finished for {seconds:,.0f} s: is a processor of the cluster free "
            "(`ray status`), and does the disk or network that holds the pictures answer?"
        ) from error


def _silence() -> None:
    """Ray Data logs its plans, draws progress bars, and logs each error that it also raises."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    for name in ("exceptions", "_internal.execution.streaming_executor_state"):
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)
    DataContext.get_current().enable_progress_bars = False
