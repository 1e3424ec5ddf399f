"""Does a reward model see what the judge sees? (Paper §3.4.1 and Fig. 29.)

A reward model is trained on pairs, but used as if its score alone meant something.
So: where it gives more, does the judge give more as well?
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

__all__ = ["binned", "rank_correlation"]


def binned(
    scores: Sequence[float], judged: Sequence[float], bins: int = 8
) -> pd.DataFrame:
    """What the judge gives, by the reward model's score: one row a bin, low to high.

    The bins hold about as many answers each; equal scores stay together, so there may
    be fewer bins. Columns: score and judged (means), half (of the 95 % interval of
    the second) and n.
    """
    table = pd.DataFrame({"score": list(scores), "judged": list(judged)})
    table = table.astype(float)
    share = table["score"].rank(method="average") / (len(table) + 1)
    groups = table.groupby((share * bins).astype(int))
    found = groups.mean()
    found["n"] = groups.size()
    spread = groups["judged"].std().fillna(0.0)
    found["half"] = 1.96 * spread / found["n"].map(math.sqrt)
    return found.reset_index(drop=True)[["score", "judged", "half", "n"]]


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks, −1 to 1; equal values share a rank.

    NaN where one of the two does not vary: there is no order then.
    """
    first, second = (pd.Series(list(v), dtype=float).rank() for v in (x, y))
    if first.nunique() < 2 or second.nunique() < 2:
        return math.nan
    return float(first.corr(second))
