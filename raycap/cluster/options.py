"""Options: which Ray cluster to use, and which of its nodes."""

import re
from dataclasses import dataclass

from raycap.errors import UserError


@dataclass(frozen=True)
class Cluster:
    """Where the work runs."""

    address: str = ""
    """The Ray cluster to join, such as auto or ray://host:10001; empty: RAY_ADDRESS if it is set,
    else a Ray on this machine."""
    cpus: int | None = None
    """Processors for the Ray on this machine; none: all of them."""
    decode_on: str = ""
    """Fetch and decode only on nodes with this label: name=value, or name=!value for nodes without
    it; empty: on any node."""
    model_on: str = ""
    """The same for the processes that hold a model, in captioning and training."""
    local_rows: int = 4000
    """A table job of at most so many pictures runs in this process, without Ray, unless an address
    is given. A larger one begins here, if this process holds the model and needs no GPU, and goes
    on when Ray has started; 0: neither."""
    wait: float = 1800.0
    """Seconds to wait for nodes that the cluster's autoscaler has to start before the work can
    start; 0: for ever."""

    def __post_init__(self) -> None:
        for name in ("decode_on", "model_on"):
            label = getattr(self, name)
            if label and not re.fullmatch(r"[^=\s]+=!?[^=!\s]+", label):
                raise UserError(
                    f"--cluster.{name.replace('_', '-')} is {label!r}: "
                    "give a label as name=value, or name=!value"
                )
        if self.cpus is not None and self.cpus < 1:
            raise UserError(
                f"--cluster.cpus is {self.cpus}: give at least 1, or leave it out for all"
            )
        if not self.wait >= 0:
            raise UserError(f"--cluster.wait is {self.wait}: give seconds, or 0 to wait for ever")
        if self.cpus is not None and self.address:
            raise UserError(
                "--cluster.cpus sizes a Ray on this machine: leave it out with --cluster.address"
            )
