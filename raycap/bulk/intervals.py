"""Means and shares with their 95% intervals.

mean_interval([1.0, 2.0, 3.0])  ->  Interval(mean=2.0, low=0.0, high=4.4)
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

QUANTILE = 1.96  # of the normal distribution, for 95%


class Interval(NamedTuple):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float

    def times(self, factor: float) -> "Interval":
        return Interval(*(value * factor for value in self))


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of independent values, with its 95% interval (Student's t). Of one value there is
    no interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, mean, mean)
    half = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, max(0.0, mean - half), mean + half)


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t, by the first terms of its expansion in 1 / freedom."""
    z = QUANTILE
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    if freedom == 1:
        return 12.71
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


def wilson_interval(hits: int, count: int) -> Interval:
    """A share with its 95% interval, which is right near 0 and 1 too."""
    share, z2 = hits / count, QUANTILE**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = QUANTILE * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    half /= 1 + z2 / count
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))
