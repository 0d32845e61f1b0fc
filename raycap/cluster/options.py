"""Options: which Ray cluster to use, and which of its nodes."""

import re
from dataclasses import dataclass

from raycap.errors import UserError


@dataclass(frozen=True)
class Cluster:
    """Where the work runs."""

    address: str = ""
    """A Ray cluster to join (auto, ray://host:10001). Empty: RAY_ADDRESS if it is set, else a local one is started."""
    cpus: int | None = None
    """Processors that a local Ray may use. None: all of this machine."""
    decode_on: str = ""
    """Fetch and decode only on nodes with this label: name=value, or name=!value for all others. Empty: any node."""
    model_on: str = ""
    """The same for the workers that hold a model, in captioning and in training."""
    wait: float = 1800.0
    """Seconds to wait for nodes that the autoscaler has to start. 0: no limit."""

    def __post_init__(self) -> None:
        for name in ("decode_on", "model_on"):
            label = getattr(self, name)
            if label and not re.fullmatch(r"[^=\s]+=!?[^=!\s]+", label):
                raise UserError(
                    f"--cluster.{name.replace('_', '-')} is {label!r}: give a label as name=value, or name=!value"
                )
        if self.cpus is not None and self.cpus < 1:
            raise UserError(
                f"--cluster.cpus is {self.cpus}: give at least 1, or leave it out to use every processor"
            )
        if not self.wait >= 0:
            raise UserError(f"--cluster.wait is {self.wait}: give seconds, or 0 for no limit")
        if self.cpus is not None and self.address:
            raise UserError(
                "--cluster.cpus is for a local Ray: leave it out when joining --cluster.address"
            )
