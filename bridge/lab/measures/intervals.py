"""A mean with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959963984540054
"""Of the normal distribution, for 95 %."""


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, low and high: Wilson's interval (1927) for shares of 0 and 1, else mean ± z s/√n.

    NaNs for no values, and for the ends where one value that is no 0 or 1 has no spread.
    """
    known = [value for value in values if not math.isnan(value)]
    count = len(known)
    if not count:
        return math.nan, math.nan, math.nan
    mean = sum(known) / count
    if all(value in (0, 1) for value in known):
        centre = (mean + Z * Z / (2 * count)) / (1 + Z * Z / count)
        half = Z * math.sqrt(mean * (1 - mean) / count + Z * Z / (4 * count * count))
        half /= 1 + Z * Z / count
        return mean, max(0.0, centre - half), min(1.0, centre + half)
    if count < 2:
        return mean, math.nan, math.nan
    variance = sum((value - mean) ** 2 for value in known) / (count - 1)
    half = Z * math.sqrt(variance / count)
    return mean, mean - half, mean + half
