"""The options of `raycap combine`, which makes one captioner of several."""

from dataclasses import dataclass
from typing import Literal

from raycap.errors import UserError


@dataclass(frozen=True)
class Combine:
    """One captioner of several that have the same encoder and the same words, such as those of
    training runs with other seeds."""

    captioners: tuple[str, ...] = ()
    """Their folders."""
    out: str = "combined"
    """Folder of the new captioner."""
    by: Literal["probabilities", "weights"] = "probabilities"
    """probabilities: an ensemble, in which each word has the mean of their probabilities; the
    encoder runs once, the search takes as long as theirs together. weights: the mean of their
    weights, which is as fast as one; for captioners that were trained from the same start."""
    shares: tuple[float, ...] = ()
    """With weights: the share of each captioner, such as 1 3; empty: all alike."""
    numbers: Literal["float32", "float16", "int8"] = "float32"
    """How weights are stored."""

    def __post_init__(self) -> None:
        if self.shares and self.by != "weights":
            raise UserError(
                "combine.shares are for --by weights: leave them out, each captioner of an "
                "ensemble counts alike"
            )
        if self.shares and not (min(self.shares) >= 0 and 0 < sum(self.shares) < float("inf")):
            raise UserError("combine.shares must be 0 or more, and one of them above 0")
