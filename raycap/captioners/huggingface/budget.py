"""How much goes into one batch: all that there is, until memory runs out."""

import math
from collections.abc import Sequence

# Batches that nearly fill the budget, without a fault, before it grows.
_PATIENCE = 4
_GROWTH = 1.5
# It stays below what was too much, until so many batches went well.
_FORGET_AFTER = 64
_BELOW = 0.9


class Budget:
    """The most that one batch may cost. It is halved when memory runs out, and grows again to
    nearly what was too much, and later beyond: another program may have taken the memory."""

    def __init__(self, most: float) -> None:
        self.most = self.now = most
        self._too_much = math.inf
        self._good = 0

    def count(self, costs: Sequence[float]) -> int:
        """How many of these, which are sorted from the largest, make up one batch: at least
        one. All are padded to the cost of the first."""
        return max(1, min(len(costs), int(self.now // costs[0])))

    def ran_out(self, cost: float) -> None:
        """Memory ran out with a batch of this cost."""
        self._too_much = cost
        self.now = max(1.0, min(self.now, cost) / 2)
        self._good = 0

    def went_well(self, cost: float) -> None:
        """A batch of this cost went well. Small ones say nothing."""
        if cost * 2 < self.now:
            return
        self._good += 1
        if self._good >= _FORGET_AFTER:
            self._too_much = math.inf
        limit = min(self.most, self._too_much * _BELOW)
        if self._good % _PATIENCE == 0 and self.now < limit:
            self.now = min(limit, self.now * _GROWTH)
