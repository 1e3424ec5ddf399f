"""Which of two models wins, answer against answer, with ties (paper §3.4, Fig. 12).

Both models answered the same prompts, several times each. Every answer of the one is
held against every answer of the other to the same prompt, so that nothing depends on
which two happen to be drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cria.intervals import Interval
from cria.judged import over_kinds

__all__ = ["TIE", "WinRate", "against", "compared"]

TIE = 0.05  # less than any single thing the judge gives or takes points for


@dataclass(frozen=True)
class WinRate:
    """Shares of comparisons won, tied and lost: they sum to 1.

    rate: wins + ties/2, with its 95 % interval over prompts; 0.5 is a draw.
    """

    win: float
    tie: float
    loss: float
    rate: Interval


def compared(
    ours: Sequence[float], theirs: Sequence[float], tie: float = TIE
) -> tuple[float, float, float]:
    """Shares won, tied and lost among all pairs of two lists of scores.

    A difference of at most ``tie`` is a tie. Raises ValueError for an empty list.
    """
    if len(ours) == 0 or len(theirs) == 0:
        raise ValueError("each side needs an answer to compare.")
    gap = np.subtract.outer(np.asarray(ours, float), np.asarray(theirs, float))
    margin = tie + 1e-9  # scores are sums of decimals: a tie is not lost to rounding
    win, loss = float((gap > margin).mean()), float((gap < -margin).mean())
    return win, 1 - win - loss, loss


def against(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    column: str,
    kinds: Collection[str],
    tie: float = TIE,
) -> WinRate:
    """How often the answers ``ours`` score higher in ``column`` than ``theirs``.

    Both have one row an answer, with the columns kind and id (the prompt's). Prompts
    of ``kinds`` only; every kind weighs the same. ValueError if the prompts differ.
    """
    here, there = (
        table[table["kind"].isin(list(kinds))].groupby(["kind", "id"])[column]
        for table in (ours, theirs)
    )
    left, right = dict(list(here)), dict(list(there))
    if left.keys() != right.keys():
        raise ValueError("the two models were not asked the same prompts.")
    shares = [compared(left[key], right[key], tie) for key in left]
    of = [kind for kind, _ in left]
    win, even, loss = (
        over_kinds([share[i] for share in shares], of).mean for i in range(3)
    )
    rate = over_kinds([w + t / 2 for w, t, _ in shares], of)
    return WinRate(win, even, loss, rate)
