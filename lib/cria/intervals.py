"""Is an effect there? Intervals over seeds, and expectations to hold them against."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# The 97.5 % point of Student's t for 1, 2, … 30 degrees of freedom.
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Interval:
    """Mean ± half, over n values. With one value, half is 0 and says nothing."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % t-interval of independent values, one a seed."""
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one value.")
    mean = statistics.fmean(values)
    if n == 1:
        return Interval(mean, 0.0, 1)
    error = statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, t_975(n - 1) * error, n)


def t_975(freedom: int) -> float:
    """The 97.5 % point of Student's t with `freedom` ≥ 1 degrees of freedom."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = 1.959964  # the normal's, and the first two terms of the way from there to t
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


@dataclass(frozen=True)
class Expectation:
    """The open range in which a claim says that an effect lies."""

    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """Read "> x", "< x" or "abs < x"."""
        sign, _, number = text.rpartition(" ")
        try:
            bound = float(number)
            low, high = {
                ">": (bound, math.inf),
                "<": (-math.inf, bound),
                "abs <": (-bound, bound),
            }[sign]
        except (KeyError, ValueError):
            raise ValueError(
                f"cannot read the expectation {text!r}: write > x, < x or abs < x."
            ) from None
        return cls(low, high)

    def holds(self, value: float) -> bool:
        """Does a single value keep to it?"""
        return self.low < value < self.high

    def holds_for(self, low: float, high: float) -> bool:
        """Does a whole interval keep to it?"""
        return self.low < low and high < self.high
